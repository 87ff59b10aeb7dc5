"""Gradient checkpointing in frozen models, whose layers transformers computes again in `train` mode alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_frozen(model: nn.Module) -> None:
    """Let the layers of a model in `eval` mode keep no activations where gradient checkpointing is on.

    Only the layers themselves go to `train` mode. While one computes it is in `eval` mode again, so that dropout which
    it does by itself, as OPT's layers do, stays off. `train` and `eval` of the model undo it.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            layer: Any = module
            layer.training = True
            if not isinstance(layer._gradient_checkpointing_func, _Recompute):
                layer._gradient_checkpointing_func = _Recompute(layer, layer._gradient_checkpointing_func)


class _Recompute:
    """A layer's checkpointing, which computes it in the mode that its parts are in."""

    def __init__(self, layer: GradientCheckpointingLayer, checkpoint: Callable[..., Any]) -> None:
        self.layer = layer
        self.checkpoint = checkpoint

    def __call__(self, forward: Callable[..., Any], *given: Any) -> Any:
        return self.checkpoint(self._compute, forward, *given)

    def _compute(self, forward: Callable[..., Any], *given: Any) -> Any:
        layer, before = self.layer, self.layer.training
        layer.training = all(part.training for part in layer.children())
        try:
            return forward(*given)
        finally:
            layer.training = before
