"""CLIP: two towers that meet in one embedding space, by transformers' own classes (Radford et al., 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, CLIPModel
from transformers import CLIPConfig as TransformersCLIPConfig

from limbeck.config import Section
from limbeck.models.files import write_model
from limbeck.models.med import TextConfig
from limbeck.models.vision import VisionConfig
from limbeck.types import AttentionState, Signals

CLIP_PARTS = {
    "vision_model": "vision",
    "text_model": "text",
    "visual_projection": "image_head",
    "text_projection": "text_head",
}
"""transformers' parts of a CLIPModel -> limbeck's parts of a dual encoder"""
LEGACY_END = 2
"""`eos_token_id` in the configs of OpenAI's CLIPs, whose texts end with the last word of the vocabulary, 49407.
transformers' CLIPTextModel takes the position of the highest id for the end wherever a config has this number."""


class ClipConfig(Section):
    """A dual encoder. Of the text tower, `dropout` is that of attention probabilities alone, as CLIP has it."""

    family: Literal["clip"] = "clip"
    vision: VisionConfig
    text: TextConfig
    embedding: int = Field(default=512, gt=0)
    """width E of the contrastive space"""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """in the feed-forward blocks; OpenAI's checkpoints have quick_gelu"""

    @model_validator(mode="after")
    def _fits(self) -> ClipConfig:
        if self.text.fusion_layers is not None:
            raise ValueError("family clip has no fusion: leave out text.fusion_layers")
        if self.vision.drop_path:
            raise ValueError("family clip has no drop_path: leave out vision.drop_path")
        return self


@final
class DualEncoder(nn.Module):
    """CLIP's image and text tower. A text is read from left to right and embedded at its last real token."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        clip = AutoModel.from_config(clip_config(config), attn_implementation="sdpa")
        assert isinstance(clip, CLIPModel)
        self.vision = clip.vision_model
        self.text = clip.text_model
        self.image_head = clip.visual_projection
        self.text_head = clip.text_projection
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def encode_image(self, pixel_values: Tensor, *, capture: bool = False) -> Signals:
        """Pixels [B, 3, R, R] -> unit embedding [B, E], hidden [B, N, D] of the last layer, before CLIP's norm."""
        resized = pixel_values.shape[-1] != self.config.vision.image_size
        with _captured(self.vision, self.config.vision.layers, capture) as seen:
            out = self.vision(pixel_values=pixel_values, interpolate_pos_encoding=resized)
        return Signals(
            output=functional.normalize(self.image_head(out.pooler_output).float(), dim=-1),
            hidden=out.last_hidden_state,
            self_attention=_state(seen, self.config.vision.heads, None) if capture else None,
        )

    def encode_text(self, input_ids: Tensor, mask: Tensor | None, *, capture: bool = False) -> Signals:
        """Ids and mask [B, T] -> unit embedding [B, E], hidden [B, T, D] after the final norm."""
        length = input_ids.shape[1]
        if length > self.config.text.max_positions:
            raise ValueError(f"a text of {length} tokens; max_positions is {self.config.text.max_positions}")
        with _captured(self.text, self.config.text.layers, capture) as seen:
            hidden = self.text(input_ids=input_ids, attention_mask=mask).last_hidden_state
        last = torch.full_like(input_ids[:, 0], length - 1) if mask is None else mask.sum(dim=1) - 1
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
        allowed = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()[None, None]
        if mask is not None:
            allowed = allowed & mask[:, None, None, :]
        return Signals(
            output=functional.normalize(self.text_head(pooled).float(), dim=-1),
            hidden=hidden,
            mask=mask,
            self_attention=_state(seen, self.config.text.heads, allowed) if capture else None,
        )

    def save(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors into `folder`, each whole or not at all."""
        write_model(self, "limbeck_clip", self.config, Path(folder))


def clip_config(config: ClipConfig) -> TransformersCLIPConfig:
    """The same model in transformers' words."""
    vision, text = config.vision, config.text
    return TransformersCLIPConfig(
        projection_dim=config.embedding,
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": vision.feed_forward_width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.norm_eps,
            "hidden_act": config.activation,
            "projection_dim": config.embedding,
        },
        text_config={
            "hidden_size": text.width,
            "intermediate_size": text.feed_forward_width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_positions,
            "layer_norm_eps": text.norm_eps,
            "attention_dropout": text.dropout,
            "hidden_act": config.activation,
            "projection_dim": config.embedding,
            "pad_token_id": text.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": text.sep_token_id,
        },
    )


@contextmanager
def _captured(tower: nn.Module, layers: int, capture: bool) -> Iterator[list[Tensor]]:
    """While open, the queries and keys [B, T, D] of a tower's last layer are put into the list, in this order."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)

    names = ("q_proj", "k_proj") if capture else ()
    attention = tower.get_submodule(f"encoder.layers.{layers - 1}.self_attn")
    handles = [attention.get_submodule(name).register_forward_hook(keep) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _state(seen: list[Tensor], heads: int, mask: Tensor | None) -> AttentionState:
    query, key = (projected.unflatten(-1, (heads, -1)).transpose(1, 2) for projected in seen)
    return AttentionState(query=query, key=key, mask=mask, scale=query.shape[-1] ** -0.5)
