"""The number formats of a model that training casts in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Formats:
    """The number formats that a model was built with, since DeepSpeed casts a model in place.

    A run that goes on builds its student anew and loads what was trained: answers, fingerprint and the saved student
    are to be the same.
    """

    def __init__(self, model: nn.Module) -> None:
        kept = {*model.state_dict(), *(name for name, _ in model.named_parameters())}
        self._kept = {name: tensor.dtype for name, tensor in _floats(model).items() if name in kept}
        self._computed = {name: tensor.clone() for name, tensor in _floats(model).items() if name not in kept}
        """what no checkpoint has, such as rotary frequencies, which a cast and back would round"""

    def restore(self, model: nn.Module, rounded: torch.dtype | None) -> None:
        """Bring the model into these formats, its numbers `rounded` where its training does so."""
        for name, tensor in _floats(model).items():
            if name in self._computed:
                tensor.data = self._computed[name].to(tensor.device)
            else:
                tensor.data = tensor.data.to(rounded or tensor.dtype).to(self._kept[name])


def cast_by(training: Mapping[str, Any]) -> torch.dtype | None:
    """The format that a stage's TrainingArguments cast the model to in place: DeepSpeed's; None for other training."""
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return next((formats[name] for name in formats if training.get("deepspeed") and training.get(name)), None)


def _floats(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of floating point."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
