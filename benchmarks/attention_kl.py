"""Attention divergence from queries and keys beside the two usual ways that form the maps: time and peak memory.

    python benchmarks/attention_kl.py [--smoke] [--json FILE] [--write-docs] [--device cuda] [--rounds N]

    kept maps     softmax of both models kept by eager attention (`output_attentions`), then KL of probabilities
    log-softmax   KL of log-softmax maps, no probabilities kept
    limbeck       `attention_kl`; on CUDA its Triton path, and its PyTorch path beside it

Time is forward and backward in milliseconds; memory is MiB above queries and keys. Before anything is timed, value and
gradients must agree with float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import gcd, log
from unittest.mock import patch

import torch
from harness import Claim, Work, at_least, milliseconds, parse, peak_mebibytes, publish
from torch import Tensor

from limbeck.kernels import attention
from limbeck.losses.attention import attention_kl
from limbeck.types import AttentionState

Loss = Callable[[AttentionState, AttentionState], Tensor]
WIDTH = 64


@dataclass(frozen=True)
class Shape:
    """One layer of a teacher with 12 heads, and one of its student."""

    kind: str
    queries: int
    keys: int
    batch: int
    heads: int = 12

    def states(self, device: str, dtype: torch.dtype) -> tuple[AttentionState, AttentionState]:
        """Random student and teacher."""
        generator = torch.Generator().manual_seed(0)

        def random(heads: int, length: int, grad: bool) -> Tensor:
            flat = torch.randn(self.batch, length, heads, WIDTH, generator=generator)
            return flat.to(device, dtype).transpose(1, 2).requires_grad_(grad)

        student, teacher = (
            AttentionState(
                query=random(heads, self.queries, grad),
                key=random(heads, self.keys, grad),
                mask=None,
                scale=WIDTH**-0.5,
            )
            for heads, grad in ((self.heads, True), (12, False))
        )
        return student, teacher


SHAPES = [
    Shape("self", 197, 197, 16),
    Shape("self", 577, 577, 4),
    Shape("self", 1024, 1024, 4),
    Shape("cross", 30, 577, 16),
    Shape("self, 6 heads", 197, 197, 16, heads=6),
    Shape("self, 6 heads", 577, 577, 4, heads=6),
    Shape("self, 9 heads", 577, 577, 4, heads=9),
]
SMOKE = [Shape("self", 577, 577, 4), Shape("cross", 30, 197, 2), Shape("self, 6 heads", 197, 197, 1, heads=6)]


def kept_maps(student: AttentionState, teacher: AttentionState) -> Tensor:
    """KL of probabilities, clamped before their logarithm as is usual."""
    groups = gcd(student.query.shape[1], teacher.query.shape[1])
    own, other = (_logits(state).softmax(-1) for state in (student, teacher))
    if student.query.shape[1] != teacher.query.shape[1]:
        own, other = (maps.unflatten(1, (groups, -1)).mean(2) for maps in (own, other))
    divergence = (other * (other.clamp(min=1e-12).log() - own.clamp(min=1e-12).log())).sum(-1)
    return divergence.mean()


def log_softmax(student: AttentionState, teacher: AttentionState) -> Tensor:
    """KL of log-probabilities."""
    groups = gcd(student.query.shape[1], teacher.query.shape[1])
    own, other = (_logits(state).log_softmax(-1) for state in (student, teacher))
    if student.query.shape[1] != teacher.query.shape[1]:
        own, other = (
            maps.unflatten(1, (groups, -1)).logsumexp(2) - log(maps.shape[1] // groups) for maps in (own, other)
        )
    return torch.nn.functional.kl_div(own, other, reduction="none", log_target=True).sum(-1).mean()


def limbeck_pytorch(student: AttentionState, teacher: AttentionState) -> Tensor:
    """`attention_kl` with the Triton path switched off."""
    with patch.object(attention, "TRITON", False):
        return attention_kl(student, teacher)


def _logits(state: AttentionState) -> Tensor:
    logits = state.query @ state.key.mT * state.scale
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def variants(device: str) -> dict[str, Loss]:
    """The ways to compare on this device."""
    usual: dict[str, Loss] = {"kept maps": kept_maps, "log-softmax": log_softmax}
    if device == "cpu":
        return {**usual, "limbeck": attention_kl}
    return {**usual, "limbeck (PyTorch)": limbeck_pytorch, "limbeck": attention_kl}


def step(loss: Loss, student: AttentionState, teacher: AttentionState) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Forward and backward."""
    value = loss(student, teacher)
    return value.detach(), torch.autograd.grad(value, (student.query, student.key))


def make_work(name: str, shape: Shape, device: str, dtype: torch.dtype) -> Work:
    """One variant's step, warmed up by a small one."""
    loss = variants(device)[name]
    step(loss, *Shape(shape.kind, 8, 8, 1, shape.heads).states(device, dtype))
    return partial(step, loss, *shape.states(device, dtype))


def error(loss: Loss, shape: Shape, device: str, dtype: torch.dtype) -> float:
    """Largest relative error of value and gradients, against formed maps in float64."""
    states = Shape(shape.kind, shape.queries, shape.keys, 1, shape.heads).states(device, dtype)
    exact = (
        AttentionState(
            query=state.query.detach().double().requires_grad_(),
            key=state.key.detach().double().requires_grad_(),
            mask=None,
            scale=state.scale,
        )
        for state in states
    )
    (value, gradients), (right, expected) = step(loss, *states), step(log_softmax, *exact)
    pairs = [(value, right), *zip(gradients, expected, strict=True)]
    return max(float((found - wanted).abs().max() / wanted.abs().max()) for found, wanted in pairs)


def measure(shape: Shape, device: str, rounds: int) -> list[dict[str, str | float]]:
    """One row for each variant."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    ways = variants(device)
    times = milliseconds({name: make_work(name, shape, device, dtype) for name in ways}, rounds, device)
    return [
        {
            "shape": shape.kind,
            "N": f"{shape.queries} x {shape.keys}",
            "B": shape.batch,
            "variant": name,
            "ms": times[name],
            "MiB": peak_mebibytes(device, make_work, name, shape, device, dtype),
            "error": error(loss, shape, device, dtype),
        }
        for name, loss in ways.items()
    ]


def claims(groups: list[list[dict[str, str | float]]], device: str) -> list[Claim]:
    """What is wanted of the rows, grouped by shape: log-softmax is the leaner and faster of the usual ways."""
    by_variant = [{str(row["variant"]): row for row in rows} for rows in groups]

    def ratio(rows: dict[str, dict[str, str | float]], column: str) -> float:
        return float(rows["log-softmax"][column]) / float(rows["limbeck"][column])

    at_577 = [rows for rows in by_variant if rows["limbeck"]["N"] == "577 x 577"]
    worst = max(float(rows["limbeck"]["error"]) for rows in by_variant)
    limit = 1e-4 if device == "cpu" else 2e-2
    return [
        at_least("times less memory than log-softmax at 577 tokens", 5, min(ratio(rows, "MiB") for rows in at_577)),
        at_least(
            "times faster than log-softmax, at its slowest shape", 1, min(ratio(rows, "ms") for rows in by_variant)
        ),
        Claim("relative error of value and gradients", f"<= {limit:g}", f"{worst:.1e}", worst <= limit),
    ]


def main() -> None:
    """Measure, print and write."""
    options = parse(__doc__)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("attention_kl: --device cuda, but PyTorch sees no CUDA device here; choose --device cpu")
    shapes, rounds = (SMOKE, 3) if options.smoke else (SHAPES, options.rounds)
    groups = [measure(shape, options.device, rounds) for shape in shapes]
    publish("attention_kl", [row for rows in groups for row in rows], claims(groups, options.device), options)


if __name__ == "__main__":
    main()
