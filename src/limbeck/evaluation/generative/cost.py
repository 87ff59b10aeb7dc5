"""What a model that writes costs: parameters by tower, multiply-accumulates, time to the first and each further token.

One picture is shown and one question asked. Both counts of evaluation/profile.py are given: products with weights and
4 for each value of a LayerNorm, which DLIP's Table 1 counts; and every matrix product, those inside attention among
them, and nothing else. The counts are of what `generate` really computes, cache and all, so the model itself runs: the
answer's first token costs the picture and the question, each further one a step with the cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle, islice, pairwise
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import (
    BatchFeature,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    StoppingCriteria,
    StoppingCriteriaList,
)

from limbeck.evaluation.generative.model import GenerativeModel, prepare
from limbeck.evaluation.inputs import evaluating
from limbeck.evaluation.profile import MIB, Count
from limbeck.models.duet import Duet
from limbeck.models.tiny_vlm import TinyVLM

FIRST, NEXT = "first_token", "next_token"
QUESTION = [
    "what",
    "is",
    "the",
    "thing",
    "that",
    "stands",
    "at",
    "the",
    "left",
    "of",
    "the",
    "other",
    "one",
    "in",
    "this",
    "picture",
]
"""The words of the question that is asked, as often as it takes."""
GREY = (127, 127, 127)
WARM_UP = 2
"""Answers before time counts."""


@dataclass(frozen=True, kw_only=True)
class GenerativeProfile:
    """What an answer costs. Latency and memory are of `batch_size` answers at once; pictures are prepared before."""

    parameters: int
    """weights that are shared count once"""
    parameters_by_tower: dict[str, int]
    """eye, connectors, tiny, table (the tiny model's tokens), large; of other models, their top-level parts"""
    macs: int
    """of the first token: picture and question, products inside attention left out"""
    macs_with_attention: int
    """of the first token: every matrix product"""
    macs_by_part: dict[str, int]
    """of `first_token` and `next_token`, products inside attention left out"""
    macs_with_attention_by_part: dict[str, int]
    """of `first_token` and `next_token`, every matrix product"""
    latency_ms: dict[str, float]
    """medians: to the `first_token`, for each `next_token`, and of the `whole` answer of `new_tokens`"""
    tokens_per_second: float
    """of all answers of the batch, the first token's time included"""
    peak_memory_mib: float
    """weights, and the most bytes of tensors that are alive at once"""
    batch_size: int
    words: int
    """of the question that was asked, the chat template's own apart"""
    prompt_tokens: int
    """those of the picture included"""
    new_tokens: int
    image_size: int
    """side of the picture that the processor was given"""
    device: str
    dtype: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def profile_generative(
    model: GenerativeModel,
    *,
    batch_size: int = 1,
    words: int = 16,
    new_tokens: int = 16,
    image_size: int = 336,
    repeats: int = 10,
) -> GenerativeProfile:
    """Count and time greedy answers of exactly `new_tokens` where the model stands (its device, its dtype).

    A question that is too long for the model's positions is halved until it fits. Raises ValueError where there are
    fewer than two new tokens, so that there is no further one.
    """
    if new_tokens < 2 or words < 1 or repeats < 1:
        raise ValueError(
            f"profile: wanted at least 2 new_tokens, 1 of words and repeats; found {new_tokens}, {words}, {repeats}"
        )
    picture, weights = Image.new("RGB", (image_size, image_size), GREY), model.model
    words = words if model.hears else 0
    inputs = _asked(model, words, picture, batch_size)
    while words > 1 and (room := model.room(inputs)) is not None and room < new_tokens:
        words //= 2
        inputs = _asked(model, words, picture, batch_size)
    inputs = inputs.to(model.device, dtype=weights.dtype)
    with evaluating(weights, model.device, bf16=False):
        plain, whole, peak = _count(weights, model.processor, inputs, batch_size)
        latency = _latency(weights, model.processor, inputs, new_tokens, repeats)
    by_tower: dict[str, int] = {}
    for name, parameter in weights.named_parameters():
        tower = tower_of(weights, name)
        by_tower[tower] = by_tower.get(tower, 0) + parameter.numel()
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in weights.parameters())
    return GenerativeProfile(
        parameters=sum(by_tower.values()),
        parameters_by_tower=by_tower,
        macs=plain[FIRST],
        macs_with_attention=whole[FIRST],
        macs_by_part=plain,
        macs_with_attention_by_part=whole,
        latency_ms=latency,
        tokens_per_second=1000 * batch_size * new_tokens / latency["whole"],
        peak_memory_mib=(weight_bytes + peak) / MIB,
        batch_size=batch_size,
        words=words,
        prompt_tokens=inputs["input_ids"].shape[1],
        new_tokens=new_tokens,
        image_size=image_size,
        device=str(model.device),
        dtype=str(weights.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def tower_of(model: PreTrainedModel, name: str) -> str:
    """The tower that a parameter belongs to, by its name."""
    first, *rest = name.split(".")
    if isinstance(model, Duet):
        if first != "tiny":
            return "connectors" if first == "connector" else first
        first = rest[0]
    elif not isinstance(model, TinyVLM):
        return rest[0] if first == model.base_model_prefix and rest else first
    return {"eye": "eye", "connector": "connectors", "table": "table"}.get(first, "tiny")


class RunningCount(Count):
    """Counts while a model really runs, on any device: attention is computed, and products of two tensors count as
    its own. RMSNorm, which is no layer that Table 1 knows, counts nothing."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
            self.attention += query.shape[:-1].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])
            return func(*args, **kwargs)
        out = super().__torch_function__(func, types, args, kwargs)
        if func in _PRODUCTS and args[0].shape[-1] > 1:
            self.attention += out.numel() * args[0].shape[-1]
        elif func in (torch.conv1d, torch.conv3d):
            self.products += out.numel() * args[1][0].numel()
        elif func is torch.addmm:
            self.products += out.numel() * args[1].shape[-1]
        return out


_PRODUCTS = (torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm)
"""An outer product, with which some models make rotary positions, accumulates nothing and counts nothing."""


def _asked(model: GenerativeModel, words: int, picture: Image.Image, batch_size: int) -> BatchFeature:
    """The picture and a question of so many words, as often as the batch wants, as the model reads them."""
    text = model.render(" ".join(islice(cycle(QUESTION), words)), 1)
    return prepare(model.processor, [text] * batch_size, [[picture]] * batch_size)


def _count(
    model: PreTrainedModel, processor: ProcessorMixin, inputs: BatchFeature, batch_size: int
) -> tuple[dict[str, int], dict[str, int], int]:
    """One answer's counts by part in both conventions, and the most bytes alive beside the weights.

    Outside inference mode, in which one cannot see what is allocated.
    """
    totals: list[tuple[int, ...]] = []
    with torch.inference_mode(False), torch.no_grad(), RunningCount(model) as count:
        for tokens in (1, 2):
            _answer(model, processor, inputs, tokens)
            totals.append(tuple(total // batch_size for total in count.take()))
    one, two = totals
    plain, whole = ({FIRST: first, NEXT: both - first} for first, both in zip(one, two, strict=True))
    return plain, whole, count.peak_bytes


def _latency(
    model: PreTrainedModel, processor: ProcessorMixin, inputs: BatchFeature, new_tokens: int, repeats: int
) -> dict[str, float]:
    """Median milliseconds to the first token, from each to the next, and of the whole answer."""
    times: list[list[float]] = []
    for _ in range(WARM_UP + repeats):
        clock = Clock(model.device)
        _answer(model, processor, inputs, new_tokens, clock)
        times.append(clock.times)
    measured = times[WARM_UP:]
    return {
        FIRST: 1000 * statistics.median(answer[1] - answer[0] for answer in measured),
        NEXT: 1000 * statistics.median(end - start for answer in measured for start, end in pairwise(answer[1:])),
        "whole": 1000 * statistics.median(answer[-1] - answer[0] for answer in measured),
    }


class Clock(StoppingCriteria):
    """Stops no answer, but notes when it was made and when each token was there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times = [self._now()]

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> torch.BoolTensor:
        self.times.append(self._now())
        return cast(torch.BoolTensor, torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: BatchFeature,
    new_tokens: int,
    clock: Clock | None = None,
) -> None:
    """Answer the batch with exactly so many tokens, whatever they say."""
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    watching = StoppingCriteriaList([] if clock is None else [clock])
    cast(Any, model).generate(**inputs, generation_config=settings, stopping_criteria=watching)
