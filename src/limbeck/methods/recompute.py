"""Gradient checkpointing: layers that keep no activations and are computed again in the backward pass.

transformers does so in `train` mode alone, and in its own models; here is what frozen models and limbeck's need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute(model: nn.Module, settings: Mapping[str, Any] | None, every_n_layers: int) -> None:
    """Let the layers of a model, of every n the first, keep no activations in `train` mode.

    `settings` go to torch.utils.checkpoint. Queries and keys that are captured inside a layer keep their gradient, as
    the layer's graph is the real one: `use_reentrant: true` would cut it, and is refused by a ValueError.
    """
    settings = {"use_reentrant": False, **(settings or {})}
    if settings["use_reentrant"]:
        raise ValueError("gradient_checkpointing_kwargs: use_reentrant: true loses the gradient of captured attention")
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index % every_n_layers == 0
        layer._gradient_checkpointing_func = partial(checkpoint, **settings)


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
