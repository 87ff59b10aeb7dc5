"""What a distillation method is: a module that owns its models, a plan of stages, and one loss per batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of training with fixed freezing, fixed loss weights and its own checkpoints."""

    name: str
    """names its checkpoint folder"""
    trainable: tuple[str, ...]
    """globs over parameter names, one that matches nothing is an error; empty: all but teachers and followers"""
    weights: Mapping[str, float]
    """loss term -> weight; a term that the method does not have is an error"""
    training: Mapping[str, Any] = field(default_factory=dict)
    """overrides of TrainingArguments for this stage"""
    part: tuple[int, int] | None = None
    """place, from 0, and number among stages of as many steps that share one learning-rate schedule; None: its own"""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A batch's loss and what it is made of."""

    terms: Mapping[str, Tensor]
    """scalar by term, unweighted; every one is logged"""
    weights: Mapping[str, float]
    """weight by term"""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """scalar by name, logged and not trained on (temperature, queue fill, effective rank...)"""

    @property
    def total(self) -> Tensor:
        """The weighted sum of the terms: what `backward` is called on."""
        return torch.stack([self.weights[name] * term for name, term in self.terms.items()]).sum()


class Method(nn.Module, ABC):
    """A distillation method. It owns student and teacher, so that a distributed wrapper sees every call.

    A method must not have an attribute `config`: transformers.Trainer would take it for a model's and write into it.
    """

    @abstractmethod
    def stages(self) -> Iterator[Stage]:
        """The plan. Code after a `yield` sees what that stage has trained."""

    @abstractmethod
    def begin_stage(self, stage: Stage, steps_per_epoch: int) -> None:
        """Called before a stage's first step, with the optimizer steps of one epoch."""

    @abstractmethod
    def begin_step(self, step: int) -> None:
        """Called before the forward passes of optimizer step `step`, counted from 0 within the stage."""

    @abstractmethod
    def forward(self, batch: Any) -> Loss:
        """The loss of one micro-batch, as the stage's collate makes it. A gradient never reaches a teacher."""

    @abstractmethod
    def teachers(self) -> tuple[str, ...]:
        """Names of the submodules that never train and that checkpoints leave out."""

    @abstractmethod
    def followers(self) -> tuple[str, ...]:
        """Names of the submodules that never train by gradient but change, so that checkpoints hold them."""
