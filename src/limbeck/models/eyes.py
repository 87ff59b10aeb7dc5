"""A limbeck image tower as transformers' ViTModel, so that a trained model's tower can be a duet's eye."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from limbeck.models.load import load_model
from limbeck.models.vision import VisionTransformer

PARTS = {
    "attention.output": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "feed_forward_norm": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}
"""A block's other modules -> their names in published ViT checkpoints."""


def eye_of(folder: Path | str) -> ViTModel:
    """The image tower of a model that `load_model` knows. Raises as it does, and ValueError for a CLIP model."""
    vision = load_model(folder).vision
    if not isinstance(vision, VisionTransformer):
        raise ValueError(f"{folder}: its image tower is CLIP's; give the transformers folder itself")
    return as_vit(vision)


def as_vit(vision: VisionTransformer) -> ViTModel:
    """The same tower as transformers' ViTModel: equal hidden states, its last norm included."""
    config = vision.config
    values = ViTConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.feed_forward_width,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=config.norm_eps,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    # the names of published checkpoints, which every version of transformers reads
    return ViTModel.from_pretrained(None, config=values, state_dict=_renamed(vision), add_pooling_layer=False).eval()


@torch.no_grad()
def _renamed(vision: VisionTransformer) -> dict[str, Tensor]:
    """The tower's weights under ViTModel's names."""
    own = vision.state_dict()
    state = {
        "embeddings.cls_token": own["class_token"],
        "embeddings.position_embeddings": own["positions"],
        "embeddings.patch_embeddings.projection.weight": own["patches.weight"],
        "embeddings.patch_embeddings.projection.bias": own["patches.bias"],
        "layernorm.weight": own["norm.weight"],
        "layernorm.bias": own["norm.bias"],
    }
    for index in range(vision.config.layers):
        here, there = f"blocks.{index}", f"encoder.layer.{index}"
        for kind in ("weight", "bias"):
            parts = zip(("query", "key", "value"), own[f"{here}.attention.qkv.{kind}"].chunk(3), strict=True)
            state |= {f"{there}.attention.attention.{name}.{kind}": part.contiguous() for name, part in parts}
            state |= {f"{there}.{theirs}.{kind}": own[f"{here}.{ours}.{kind}"] for ours, theirs in PARTS.items()}
    return state
