"""What makes limbeck's step light, one thing at a time, and how to do each the usual way instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from usual_step import attend, divergence, draw

from limbeck.models.fusion import FusionVLM, Memory
from limbeck.models.med import CrossHeads, TextTransformer
from limbeck.types import AttentionState, Signals

Bank = tuple[Tensor, Tensor]
"""Momentum features of a batch, and the queue"""


@dataclass(frozen=True)
class Measure:
    """One thing that makes limbeck's step light, and how to undo it."""

    name: str
    undone: Callable[[], AbstractContextManager[object]] = nullcontext
    """what is open while the step runs without it"""
    padded: bool = False
    """whether texts are padded to 30 tokens instead"""
    fused: bool = True
    """whether the optimizer is fused"""


@contextmanager
def slow_momentum() -> Iterator[None]:
    """Momentum encoders that follow tensor by tensor, in three kernels each."""

    def follow(slow: list[Tensor], fast: list[Tensor], share: float) -> None:
        for own, other in zip(slow, fast):
            own.data = own.data * (1 - share) + other.data * share

    with patch.object(torch, "_foreach_lerp_", follow):
        yield


@contextmanager
def drawn_by_row() -> Iterator[None]:
    """Hard negatives that wait for the device once per row."""

    def negatives(similarity: Tensor, _same: Tensor, *, smoothing: float) -> Tensor:
        return torch.tensor(draw(similarity), device=similarity.device)

    with patch("limbeck.methods.vlp.hard_negatives", negatives):
        yield


@contextmanager
def joined_queue() -> Iterator[None]:
    """A queue that is cloned and joined to the batch's features, and targets as one-hot matrices."""

    def join(bank: Bank) -> Tensor:
        return torch.cat([bank[0].t(), bank[1].t().clone()], dim=1)

    def targets(features: Tensor, bank: Bank, temperature: Tensor, alpha: float, _right: Tensor) -> Tensor:
        logits = features @ join(bank) / temperature
        one_hot = torch.zeros_like(logits)
        one_hot.fill_diagonal_(1)
        return alpha * logits.softmax(1) + (1 - alpha) * one_hot

    def contrast(
        image: Tensor, text: Tensor, images: Bank, texts: Bank, temperature: Tensor, to_text: Tensor, to_image: Tensor
    ) -> Tensor:
        sides = ((image, texts, to_text), (text, images, to_image))
        losses = [-((side @ join(bank) / temperature).log_softmax(1) * right).sum(1) for side, bank, right in sides]
        return (losses[0] + losses[1]) / 2

    with patch("limbeck.methods.vlp.soft_targets", targets), patch("limbeck.methods.vlp.contrastive", contrast):
        yield


@dataclass(frozen=True)
class MadeAnew(CrossHeads):
    """Keys and values that every pass makes for itself."""

    tower: TextTransformer | None = None
    hidden: Tensor | None = None

    def gather(self, rows: Tensor | None) -> CrossHeads:
        assert self.tower is not None
        assert self.hidden is not None
        return self.tower.memory(self.hidden if rows is None else self.hidden[rows])


@contextmanager
def unshared_memory() -> Iterator[None]:
    """Keys and values of the pictures made anew in each pass of matching and in the decoder."""

    def memory(model: FusionVLM, image: Tensor | Signals) -> Memory:
        hidden = image if isinstance(image, Tensor) else image.hidden
        anew = MadeAnew((), tower=model.text, hidden=hidden)
        return Memory(anew, anew)

    with patch.object(FusionVLM, "image_memory", memory):
        yield


@contextmanager
def eager_attention() -> Iterator[None]:
    """Eager attention whose maps are kept, and distillation by the kept maps."""
    kept: dict[int, Tensor] = {}

    def eager(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
    ) -> Tensor:
        bias = None if attn_mask is None else (1.0 - attn_mask.float()) * -10000.0
        mixed, kept[query.data_ptr()] = attend(query, key, value, bias, dropout_p)
        return mixed.unflatten(-1, (query.shape[1], -1)).transpose(1, 2)

    def compare(
        student: AttentionState, teacher: AttentionState, *, row_mask: Tensor | None, head_map: str, count: Tensor
    ) -> Tensor:
        rows = student.query.shape[0], student.query.shape[2]
        real = torch.ones(rows, device=student.query.device) if row_mask is None else row_mask.float()
        maps = [kept[state.query.data_ptr()][: len(state.query)] for state in (student, teacher)]
        return divergence(maps[0], maps[1], real)

    with (
        patch.object(functional, "scaled_dot_product_attention", eager),
        patch("limbeck.methods.dlip.attention_kl", compare),
    ):
        yield


MEASURES = (
    Measure("momentum encoders in one call", slow_momentum),
    Measure("negatives in one draw", drawn_by_row),
    Measure("a queue that stays in place", joined_queue),
    Measure("shared keys and values", unshared_memory),
    Measure("map-free attention", eager_attention),
    Measure("padding to the longest", padded=True),
    Measure("fused optimizer", fused=False),
)
