"""BLIP's vision transformer over `scaled_dot_product_attention`."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from limbeck.config import Section
from limbeck.types import AttentionState


class VisionConfig(Section):
    """An image tower: pre-norm transformer over patches, with a class token and learned positions."""

    width: int = Field(gt=0)
    """hidden width D"""
    layers: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    feed_forward: int | None = Field(default=None, gt=0)
    """width inside the feed-forward block; null: four times `width`"""
    patch_size: int = Field(default=16, gt=0)
    """side of a patch in pixels"""
    image_size: int = Field(default=224, gt=0)
    """side of the picture in pixels that the learned positions are for; other sizes interpolate them"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """chance that training skips the last block for a picture; earlier blocks less, linearly (BLIP's VQA: 0.1)"""
    norm_eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _divides(self) -> VisionConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into heads {self.heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} does not divide into patch_size {self.patch_size}")
        return self

    @property
    def feed_forward_width(self) -> int:
        return self.feed_forward or 4 * self.width

    @property
    def tokens(self) -> int:
        """N: patches of one picture, and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class VisionAttention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, D] -> mixed [B, N, D], query and key [B, H, N, d]."""
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2)), query, key


class VisionBlock(GradientCheckpointingLayer):
    """One pre-norm block: attention, then feed-forward, each skipped at random with chance `drop_path` in training."""

    def __init__(self, config: VisionConfig, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.attention_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = VisionAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.up = nn.Linear(config.width, config.feed_forward_width)
        self.down = nn.Linear(config.feed_forward_width, config.width)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, D] -> hidden [B, N, D], query and key [B, H, N, d]."""
        mixed, query, key = self.attention(self.attention_norm(hidden))
        hidden = hidden + self._drop(mixed)
        hidden = hidden + self._drop(self.down(functional.gelu(self.up(self.feed_forward_norm(hidden)))))
        return hidden, query, key

    def _drop(self, update: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return update
        keep = 1 - self.drop_path
        return update * update.new_empty(len(update), 1, 1).bernoulli_(keep).div_(keep)


class VisionTransformer(nn.Module):
    """Pictures to hidden states. Parameter names differ from transformers' BlipVisionModel by a plain renaming."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.patches = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.positions = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        last = max(1, config.layers - 1)
        self.blocks = nn.ModuleList(
            VisionBlock(config, config.drop_path * depth / last) for depth in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.apply(initialise)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, pixel_values: Tensor, *, capture: bool = False) -> tuple[Tensor, AttentionState | None]:
        """Pixels [B, 3, R, R], R a multiple of the patch -> hidden [B, N, D], last layer's attention if captured."""
        height, width = pixel_values.shape[-2:]
        size = self.config.patch_size
        if height % size or width % size:
            raise ValueError(f"a picture of {height} x {width} pixels does not divide into patches of {size} pixels")
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2)
        hidden = torch.cat((self.class_token.to(patches.dtype).expand(len(patches), -1, -1), patches), dim=1)
        hidden = hidden + interpolate_positions(self.positions, height // size, width // size)
        query = key = hidden
        for block in self.blocks:
            hidden, query, key = block(hidden)
        state = AttentionState(query=query, key=key, mask=None, scale=query.shape[-1] ** -0.5) if capture else None
        return self.norm(hidden), state


def interpolate_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """Positions [1, 1 + g * g, D] of a square grid -> [1, 1 + height * width, D], bicubic; the class token's stays."""
    grid = round((positions.shape[1] - 1) ** 0.5)
    if (height, width) == (grid, grid):
        return positions
    square = positions[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    resized = functional.interpolate(square.float(), size=(height, width), mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :1], resized.flatten(2).transpose(1, 2).to(positions.dtype)), dim=1)


def initialise(module: nn.Module) -> None:
    """BLIP's first weights: truncated normal of standard deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
