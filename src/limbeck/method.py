"""What a distillation method is: a module that owns its models, a plan of stages, and one loss per batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from limbeck.types import Batch


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of training with fixed freezing, fixed loss weights and its own checkpoints."""

    name: str
    """names its checkpoint folder"""
    trainable: tuple[str, ...]
    """globs over parameter names; one that matches nothing is an error"""
    weights: Mapping[str, float]
    """loss term -> weight; a term that the method does not have is an error"""
    training: Mapping[str, Any] = field(default_factory=dict)
    """overrides of TrainingArguments for this stage"""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A batch's loss and what it is made of."""

    total: Tensor
    """scalar, the weighted sum of `terms`; what `backward` is called on"""
    terms: Mapping[str, Tensor]
    """scalar by term, unweighted; every one is logged"""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """scalar by name, logged and not trained on (temperature, queue fill, effective rank...)"""


class Method(nn.Module, ABC):
    """A distillation method. It owns student and teacher, so that a distributed wrapper sees every call."""

    @abstractmethod
    def stages(self) -> Iterator[Stage]:
        """The plan. Code after a `yield` sees what that stage has trained."""

    @abstractmethod
    def begin(self, stage: Stage, steps_per_epoch: int) -> None:
        """Called before a stage's first step, with the optimizer steps of one epoch."""

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The loss of one micro-batch. A gradient never reaches a teacher."""

    @abstractmethod
    def teachers(self) -> tuple[str, ...]:
        """Names of the submodules that checkpoints leave out."""
