"""limbeck's folders, the duet's too, under lmms-eval: ``lmms-eval --model limbeck --model_args pretrained=FOLDER ...``.

Needs the extra `lmms` (package lmms-eval, which wants torchvision). lmms-eval finds `manifest` by the entry point
`lmms_eval.models`; nothing else in limbeck imports this module. Any transformers image-text-to-text model with a chat
template runs in this way. Pictures go before the text, as in training; limbeck's own folders see the first alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lmms_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from PIL import Image
from tqdm import tqdm

from limbeck.data.examples import MadeImage, to_rgb
from limbeck.evaluation.generative.answering import answers_to
from limbeck.evaluation.generative.items import Item
from limbeck.evaluation.generative.model import AnsweringConfig, GenerativeModel

_PLACEHOLDER = "<image>"
_WINDOW = 32
"""Batches that are sorted by length together; the pictures of so many are in memory at once."""
_MOST_TOKENS = 1024
"""Of an answer, where the task says nothing."""


class Limbeck(lmms):
    """lmms-eval's interface over a `GenerativeModel`, one process or one of several."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        dtype: str = "auto",
        workers: int = 0,
    ) -> None:
        """`pretrained` names a folder or a Hugging Face model, `dtype` a torch type such as bfloat16.

        lmms-eval passes `device`, `batch_size` and `max_batch_size`; of the last nothing is made.
        """
        super().__init__()
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = GenerativeModel.from_folder(pretrained, device=self._device, dtype=_dtype(dtype))
        self._batch_size = int(batch_size)
        self._workers = workers

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """One answer for each request, in their order."""
        answers: list[str] = []
        with tqdm(total=len(requests), desc="limbeck", unit="answer", disable=self.rank != 0) as bar:
            for start in range(0, len(requests), _WINDOW * self._batch_size):
                window = requests[start : start + _WINDOW * self._batch_size]
                answers += self._answer(window)
                bar.update(len(window))
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: tasks that rank given answers need another model class."""
        raise NotImplementedError("limbeck under lmms-eval writes answers; it does not rank given ones")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("limbeck under lmms-eval answers one turn at a time")

    def _answer(self, requests: Sequence[Instance]) -> list[str]:
        items = [self._item(number, *request.args) for number, request in enumerate(requests)]
        wishes = [request.args[1] for request in requests]
        answers = [""] * len(requests)
        for (tokens, config), members in _alike(wishes, self._batch_size, self._workers):
            written = answers_to(
                self._model, [items[number] for number in members], max_new_tokens=tokens, config=config
            )
            for number, text in zip(members, written, strict=True):
                answers[number] = _until(text, wishes[number])
                context = requests[number].args[0]
                self.cache_hook.add_partial("generate_until", (context, wishes[number]), answers[number])
        return answers

    def _item(
        self, number: int, context: str, _wishes: Mapping[str, Any], doc_to_visual: Any, doc: int, task: str, split: str
    ) -> Item:
        visuals = doc_to_visual(self.task_dict[task][split][doc]) or []
        if not all(isinstance(visual, Image.Image) for visual in visuals):
            raise ValueError(f"lmms-eval task {task}: limbeck looks at pictures, and this task shows something else")
        images = tuple(
            MadeImage(f"{task}/{doc}/{place}", partial(to_rgb, visual)) for place, visual in enumerate(visuals)
        )
        prompt = context.replace(_PLACEHOLDER, "").strip()
        return Item(id=str(number), prompt=prompt, images=images, row={})


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest(model_id="limbeck", simple_class_path=f"{__name__}.{Limbeck.__name__}")


def _alike(
    wishes: Sequence[Mapping[str, Any]], batch_size: int, workers: int
) -> Iterator[tuple[tuple[int, AnsweringConfig], list[int]]]:
    """Requests by number that can be answered together: settings, and who wants them."""
    groups: dict[tuple[int, AnsweringConfig], list[int]] = {}
    for number, wish in enumerate(wishes):
        samples = wish.get("do_sample", True) and (wish.get("temperature") or 0) > 0
        config = AnsweringConfig(
            batch_size=batch_size,
            workers=workers,
            num_beams=wish.get("num_beams") or 1,
            temperature=wish["temperature"] if samples else 0,
            top_p=(wish.get("top_p") or 1) if samples else 1,
        )
        groups.setdefault((wish.get("max_new_tokens") or _MOST_TOKENS, config), []).append(number)
    yield from groups.items()


def _until(text: str, wish: Mapping[str, Any]) -> str:
    """The text up to the first of the task's stop words."""
    stops = wish.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text.strip()


def _dtype(name: str) -> torch.dtype | Literal["auto"]:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return "auto"
    if name not in known:
        raise ValueError(f"dtype {name!r}: wanted auto, {', '.join(known)}")
    return known[name]
