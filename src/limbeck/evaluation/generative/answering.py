"""Answers to prompts, in a file that grows as the batches finish and goes on after a kill.

Prompts go through the processor's chat template and are answered in batches of about one length, the longest first.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import BatchFeature, ProcessorMixin

from limbeck.data.examples import BrokenImage, Skipped, check_skipped
from limbeck.evaluation.generative.items import Item
from limbeck.evaluation.generative.model import AnsweringConfig, GenerativeModel, prepare
from limbeck.evaluation.inputs import Row, write_rows, write_whole


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came of the items."""

    rows: list[Row]
    """one for each item whose picture opened, in the order of the items"""
    skipped: tuple[Skipped, ...]


def answer_all(
    model: GenerativeModel,
    items: Sequence[Item],
    rows: Path,
    *,
    max_new_tokens: int,
    config: AnsweringConfig | None = None,
    progress: bool = True,
    name: str = "answers",
) -> Answers:
    """Answer every item and leave one row for each in `rows`: its `row`, `id`, `prompt`, `prediction`, `answered_by`.

    Rows are appended as batches finish. A second call keeps those that the same model wrote to the same prompts with
    the same settings, drops a line that a kill has torn, and answers the rest; in the end the rows stand in the order
    of the items. Raises ValueError where two items have one id or a whole line is no row, DataError where too many
    pictures are broken.
    """
    config = config or AnsweringConfig()
    if not items or len({item.id for item in items}) < len(items):
        raise ValueError(f"{name}: wanted items with an id of their own each, found {len(items)}, some of one id")
    texts = [model.render(item.prompt, len(item.images)) for item in items]
    marks = _marks(model.fingerprint(), texts, max_new_tokens, config)
    wanted = {item.id: mark for item, mark in zip(items, marks)}
    done = {
        row["id"]: row["prediction"] for row in _finished(rows) if (row["id"], row["answered_by"]) in wanted.items()
    }

    def line(index: int) -> str:
        return json.dumps(row_of(items[index]), ensure_ascii=False) + "\n"

    def row_of(item: Item) -> Row:
        answer = {"prompt": item.prompt, "prediction": done[item.id], "answered_by": wanted[item.id]}
        return {"id": item.id, **item.row, **answer}

    write_whole(rows, "".join(line(index) for index, item in enumerate(items) if item.id in done))
    todo = [index for index, item in enumerate(items) if item.id not in done]
    batches = _batches(model, items, texts, todo, config.batch_size)
    skipped: list[Skipped] = []
    with (
        rows.open("a", encoding="utf-8") as file,
        tqdm(total=len(items), initial=len(done), desc=name, unit="answer", disable=not progress) as bar,
    ):
        for batch, predictions, broken in _answered(model, items, texts, batches, max_new_tokens, config):
            skipped += broken
            done |= {items[index].id: prediction for index, prediction in zip(batch, predictions, strict=True)}
            file.write("".join(line(index) for index in batch))
            file.flush()
            bar.update(len(batch) + len(broken))
    check_skipped(skipped, len(items), config.max_skipped, name)
    answered = [row_of(item) for item in items if item.id in done]
    write_rows(rows, answered)
    return Answers(rows=answered, skipped=tuple(skipped))


def answers_to(
    model: GenerativeModel,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    config: AnsweringConfig | None = None,
) -> list[str]:
    """The answers alone, in the order of the items, without a file. Raises BrokenImage."""
    config = config or AnsweringConfig()
    texts = [model.render(item.prompt, len(item.images)) for item in items]
    batches = _batches(model, items, texts, range(len(items)), config.batch_size)
    found: dict[int, str] = {}
    for batch, predictions, broken in _answered(model, items, texts, batches, max_new_tokens, config):
        if broken:
            raise BrokenImage(str(broken[0]))
        found |= zip(batch, predictions, strict=True)
    return [found[index] for index in range(len(items))]


def _batches(
    model: GenerativeModel, items: Sequence[Item], texts: Sequence[str], todo: Sequence[int], size: int
) -> list[list[int]]:
    """Items of one number of pictures together, the longest first: memory runs out at once or never."""
    lengths = {index: model.length(texts[index]) for index in todo}
    batches: list[list[int]] = []
    for pictures in sorted({len(items[index].images) for index in todo}, reverse=True):
        same = [index for index in todo if len(items[index].images) == pictures]
        same.sort(key=lambda index: (-lengths[index], index))
        batches += [same[start : start + size] for start in range(0, len(same), size)]
    return batches


def _answered(
    model: GenerativeModel,
    items: Sequence[Item],
    texts: Sequence[str],
    batches: Sequence[list[int]],
    max_new_tokens: int,
    config: AnsweringConfig,
) -> Iterator[tuple[list[int], list[str], list[Skipped]]]:
    """Of each batch: the items answered, their answers, and what was left out."""
    prepared = _Prepared(model.processor, items, texts, batches)
    loader = DataLoader(prepared, None, num_workers=config.workers, collate_fn=_as_it_is, generator=torch.Generator())
    for batch, inputs, broken in loader:
        answers: list[str] = []
        if inputs is not None:
            with torch.random.fork_rng(enabled=config.temperature > 0):
                if config.temperature > 0:
                    torch.manual_seed(random.Random(f"{config.seed} {items[batch[0]].id}").getrandbits(63))
                answers = model.write(inputs, max_new_tokens, config)
        yield batch, answers, broken


class _Prepared(Dataset[tuple[list[int], BatchFeature | None, list[Skipped]]]):
    """Batches as the model takes them; pictures are opened here, in a worker where there are any."""

    def __init__(
        self, processor: ProcessorMixin, items: Sequence[Item], texts: Sequence[str], batches: Sequence[list[int]]
    ) -> None:
        self._processor = processor
        self._items = items
        self._texts = texts
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> tuple[list[int], BatchFeature | None, list[Skipped]]:
        kept: list[int] = []
        images: list[list[Image.Image]] = []
        broken: list[Skipped] = []
        for index in self._batches[number]:
            try:
                images.append([image.open() for image in self._items[index].images])
                kept.append(index)
            except BrokenImage as error:
                broken.append(Skipped(id=self._items[index].id, reason=str(error)))
        texts = [self._texts[index] for index in kept]
        return kept, prepare(self._processor, texts, images) if kept else None, broken


def _as_it_is(batch: Any) -> Any:
    return batch


def _marks(fingerprint: str, texts: Sequence[str], max_new_tokens: int, config: AnsweringConfig) -> list[str]:
    """What an answer depends on, as a short mark: model, settings that matter, and text."""
    settings = config.model_dump_json(exclude={"batch_size", "workers", "max_skipped"})
    start = hashlib.blake2b(f"{fingerprint} {settings} {max_new_tokens} ".encode(), digest_size=8)
    marks = []
    for text in texts:
        digest = start.copy()
        digest.update(text.encode())
        marks.append(digest.hexdigest())
    return marks


def _finished(rows: Path) -> Iterator[Row]:
    """The rows that are there. A last line without its end was torn by a kill and does not count."""
    if not rows.is_file():
        return
    with rows.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{rows} line {number}: not JSON: {error}; remove the line or the file") from None
            if not isinstance(row, dict) or not {"id", "prediction", "answered_by"} <= row.keys():
                raise ValueError(f"{rows} line {number}: no row of answers; remove the file or choose another name")
            yield row
