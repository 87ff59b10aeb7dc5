"""What the log says of a stage's loss terms: their means over steps and processes, and their share of the gradient."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.method import Loss


@dataclass
class Meter:
    """Sums of loss terms between two lines of the log, kept on the device so that no step waits for them."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    since: int = 0
    """the step of the last line"""
    started: float = field(default_factory=time.perf_counter)
    """when the last line was written"""

    def add(self, loss: Loss) -> None:
        """Add one micro-batch's terms; of each value of the state the last one stands."""
        for name, term in loss.terms.items():
            self.terms[name] = self.terms.get(name, 0) + term.detach()
        self.state |= {name: value.detach() for name, value in loss.state.items()}
        self.weights |= loss.weights

    def drain(self, step: int, world_size: int) -> dict[str, dict[str, float]]:
        """Means per optimizer step since the last call, over all processes; then start anew."""
        steps = max(1, step - self.since)
        terms = {name: total / world_size / steps for name, (total, _) in _totals(self.terms, world_size).items()}
        state = {name: total / holders for name, (total, holders) in _totals(self.state, world_size).items()}
        record = {"terms": terms, "state": state} | ({"gradient_share": self.shares} if self.shares else {})
        self.terms, self.state, self.shares = {}, {}, {}
        self.since, self.started = step, time.perf_counter()
        return record


def _totals(values: Mapping[str, Tensor], world_size: int) -> dict[str, tuple[float, int]]:
    """Sum of each value over the processes that have it, and how many those are: a batch may lack a term."""
    found: list[Any] = [list(values)]
    if world_size > 1:
        found = [None] * world_size
        dist.all_gather_object(found, list(values))
    names = list(dict.fromkeys(chain(*found)))
    if not names:
        return {}
    nothing = torch.zeros_like(next(iter(values.values()))) if values else torch.zeros(())
    totals = torch.stack([values.get(name, nothing).float() for name in names])
    if world_size > 1:
        dist.all_reduce(totals)
    return {
        name: (total, sum(name in names_there for names_there in found)) for name, total in zip(names, totals.tolist())
    }


def gradient_shares(loss: Loss, parameters: list[nn.Parameter]) -> dict[str, float]:
    """Norm of each weighted term's gradient as a share of the sum of these norms."""
    norms = {}
    for name, term in loss.terms.items():
        if loss.weights[name] and term.requires_grad:
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
            norms[name] = loss.weights[name] * torch.stack(squares).sum().sqrt().item()
    total = sum(norms.values()) or 1.0
    return {name: norm / total for name, norm in norms.items()}
