"""The duet's eye: an image tower of transformers, and the hidden states of one of its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, ViTModel

from limbeck.models.duet_config import TinyVLMConfig
from limbeck.models.duet_cross import repeated_layers


def make_eye(config: PreTrainedConfig) -> PreTrainedModel:
    """An image tower with first weights, in the precision of the moment, which `from_pretrained` sets."""
    return without_pooling(AutoModel.from_config(config, dtype=torch.get_default_dtype()))


def without_pooling(eye: PreTrainedModel) -> PreTrainedModel:
    """The tower without a pooling head, which nothing here reads."""
    if isinstance(eye, ViTModel):
        eye.pooler = None
    return eye


def see_patches(eye: PreTrainedModel, config: TinyVLMConfig, pixel_values: Tensor) -> Tensor:
    """Pixels [B, 3, R, R] -> hidden states [B, N, De] of the configured layer, before the tower's final norm.

    Without a graph where nothing in the tower trains.
    """
    layers = repeated_layers(eye, config.eye_part.num_hidden_layers)
    kept: list[Tensor] = []

    def keep(_layer: nn.Module, _given: tuple[Any, ...], output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in eye.parameters())
    handle = layers[config.eye_layer].register_forward_hook(keep)
    try:
        with torch.set_grad_enabled(trains):
            eye(pixel_values=pixel_values.to(eye.dtype))
    finally:
        handle.remove()
    return kept[0][:, 1:] if config.drop_class_token else kept[0]
