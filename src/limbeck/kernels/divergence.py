"""Divergence and cross-entropy over a vocabulary, from hidden states and heads: logits exist a block at a time.

The gradient is computed together with the value (nothing is recomputed in the backward pass): a block of the student's
logits and one of the teacher's are multiplied out, a few rows at a time become losses and, in their own place, the
gradient of the student's logits, which is carried to hidden states, head and bias before the next block takes the room.
What is kept is the student's gradient, as large as its hidden states and its head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.kernels import divergence_product as product
from limbeck.kernels.divergence_rows import DIVERGENCES, cross_entropy

BLOCK = {"cpu": 2**23}
"""Elements of one block of logits, by kind of device: 32 MiB in float32"""
LARGE_BLOCK = 2**26
"""The same for every other device"""
LEAST_ROWS = 128
"""Tokens of a block at least, however many words there are: fewer make matrix products slow"""
SLICE = {"cpu": 2**18}
"""Elements that are turned into a gradient at once, for each thread: 1 MiB in float32, which stays in the cache"""
LARGE_SLICE = 2**23
"""The same for every other device, whose threads share one cache"""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What logits are made of: ``hidden @ weight.T + bias``."""

    hidden: Tensor
    """[N, D]"""
    weight: Tensor
    """[V or more, D]"""
    bias: Tensor | None
    """[V or more]"""


@dataclass(frozen=True, kw_only=True)
class Soft:
    """The teacher's side: each token's divergence counts `weight` [N] times."""

    teacher: Head
    weight: Tensor
    kind: str
    beta: float
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Hard:
    """The labels' side: each token's cross-entropy with `labels` [N] counts `weight` [N] times."""

    labels: Tensor
    weight: Tensor
    smoothing: float


def vocabulary_loss(
    student: Head, vocabulary: int, soft: Soft | None, hard: Hard | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scalars: the weighted sum of both sides over all tokens, then each side's own, which carry no gradient.

    Only the first `vocabulary` rows of a head exist. The gradient reaches the student's tensors that require it.
    """
    return _VocabularyLoss.apply(student.hidden, student.weight, student.bias, vocabulary, soft, hard)


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        vocabulary: int,
        soft: Soft | None,
        hard: Hard | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        student = _Ready(Head(hidden=hidden, weight=weight, bias=bias), vocabulary)
        teacher = None if soft is None else _Ready(soft.teacher, vocabulary)
        inputs, dtypes = (hidden, weight, bias), (student.hidden.dtype, student.exact, student.exact)
        gradients = [
            torch.zeros_like(given, dtype=dtype) if given is not None and needed else None
            for given, dtype, needed in zip(inputs, dtypes, ctx.needs_input_grad)
        ]
        with torch.autocast(hidden.device.type, enabled=False):
            sweep = _Sweep(student, teacher, soft, hard, gradients)
            for tokens in sweep.blocks():
                sweep.add(tokens)
        ctx.unit = sweep.unit
        ctx.save_for_backward(
            *(
                found if found is None or given is None else found.to(given.dtype)
                for found, given in zip(gradients, inputs)
            )
        )
        soft_sum, hard_sum = sweep.sums
        ctx.mark_non_differentiable(soft_sum, hard_sum)
        return soft_sum + hard_sum, soft_sum, hard_sum

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        scale = upstream[0] * ctx.unit
        if scale.device.type != "cpu" or scale != 1:
            gradients = [None if gradient is None else gradient * scale for gradient in gradients]
        return *gradients, None, None, None


class _Ready:
    """A `Head` in the precision its logits are multiplied in, as autocast or its own types say, cut to the words."""

    def __init__(self, head: Head, vocabulary: int):
        device = head.hidden.device.type
        dtype = torch.promote_types(head.hidden.dtype, head.weight.dtype)
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        self.exact = torch.promote_types(dtype, torch.float32)
        self.hidden = head.hidden.detach().to(dtype)
        self.weight = head.weight.detach()[:vocabulary].to(dtype).contiguous()
        self.bias = None if head.bias is None else head.bias.detach()[:vocabulary].to(self.exact)

    def block(self, rows: int) -> Tensor:
        """Room for the logits of so many tokens."""
        dtype = product.logit_dtype(self.hidden)
        return torch.empty((rows, len(self.weight)), dtype=dtype, device=self.hidden.device)


class _Sweep:
    """One pass over all tokens: `sums` of both sides, and their gradient divided by `unit`, added to `gradients`."""

    def __init__(
        self,
        student: _Ready,
        teacher: _Ready | None,
        soft: Soft | None,
        hard: Hard | None,
        gradients: list[Tensor | None],
    ):
        self.student, self.teacher, self.soft, self.hard = student, teacher, soft, hard
        self.to_hidden, self.to_head, self.to_bias = gradients
        words, device = len(student.weight), student.hidden.device
        weights = torch.stack([side.weight.detach().to(student.exact) for side in (soft, hard) if side is not None])
        self.tokens = weights.any(0).nonzero()[:, 0]
        # In float16 the gradient of a logit would vanish for a small weight: the greatest is 1 until the backward pass.
        self.unit = 1.0
        if student.hidden.dtype == torch.float16 and len(self.tokens):
            self.unit = float(weights.abs().max())
        self.rows = max(min(max(BLOCK.get(device.type, LARGE_BLOCK) // words, LEAST_ROWS), len(self.tokens)), 1)
        size = SLICE[device.type] * torch.get_num_threads() if device.type in SLICE else LARGE_SLICE
        self.step = min(max(size // words, 1), self.rows)
        self.sums = torch.zeros(2, dtype=student.exact, device=device)
        self.logits = student.block(self.rows)
        self.target = None if teacher is None else teacher.block(self.rows)
        # For half precision's logits in full precision, both softmaxes, and the labels' gradient.
        self.room = torch.empty((5, self.step, words), dtype=student.exact, device=device)

    def blocks(self) -> tuple[Tensor, ...]:
        """The tokens that count, a block at a time."""
        return self.tokens.split(self.rows) if len(self.tokens) else ()

    def add(self, tokens: Tensor) -> None:
        """Take one block of tokens into the sums and the gradients."""
        student, teacher = self.student, self.teacher
        hidden = student.hidden.index_select(0, tokens)
        logits = self.logits[: len(tokens)]
        product.project(hidden, student.weight, logits)
        target = None
        if teacher is not None and self.target is not None:
            target = self.target[: len(tokens)]
            product.project(teacher.hidden.index_select(0, tokens), teacher.weight, target)
        for first in range(0, len(tokens), self.step):
            rows = slice(first, first + self.step)
            self._turn(tokens[rows], logits[rows], None if target is None else target[rows])
        gradient = logits.to(hidden.dtype)
        if self.to_hidden is not None:
            self.to_hidden.index_copy_(0, tokens, product.to_hidden(gradient, student.weight))
        if self.to_head is not None:
            product.add_to_head(self.to_head[: len(student.weight)], gradient, hidden)
        if self.to_bias is not None:
            self.to_bias[: len(student.weight)] += logits.sum(0, dtype=student.exact)

    def _turn(self, tokens: Tensor, logits: Tensor, target: Tensor | None) -> None:
        """Turn a few rows of logits into their gradient."""
        own_room, other_room, own, other, hard_gradient = self.room[:, : len(tokens)]
        student = _exact(logits, self.student.bias, own_room)
        if self.hard is not None:
            weight = self.hard.weight[tokens].to(student.dtype)
            losses = cross_entropy(student, self.hard.labels[tokens], self.hard.smoothing, hard_gradient)
            self.sums[1] += torch.dot(weight, losses)
            weight = (weight / self.unit)[:, None]
            if self.soft is None:
                torch.mul(hard_gradient, weight, out=student)
            else:
                hard_gradient.mul_(weight)
        if self.soft is not None and self.teacher is not None and target is not None:
            soft = self.soft
            teacher = _exact(target, self.teacher.bias, other_room)
            if soft.temperature != 1:
                student.div_(soft.temperature)
                teacher.div_(soft.temperature)
            weight = soft.weight[tokens].to(student.dtype)
            divergences = DIVERGENCES[soft.kind](student, teacher, own, other, soft.beta)
            self.sums[0] += torch.dot(weight, divergences)
            student.mul_((weight / (self.unit * soft.temperature))[:, None])
            if self.hard is not None:
                student.add_(hard_gradient)
        if student is not logits:
            logits.copy_(student)


def _exact(logits: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """The logits with their bias in full precision: in their own place where they have it, else in `room`."""
    exact = logits if logits.dtype == room.dtype else room.copy_(logits)
    return exact if bias is None else exact.add_(bias)
