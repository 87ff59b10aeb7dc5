"""DLIP's Table 1 as data: the image and text towers at four scales each."""

from __future__ import annotations

from typing import Literal, NamedTuple

from limbeck.models.med import TextConfig
from limbeck.models.vision import VisionConfig

Scale = Literal["base", "middle", "small", "tiny"]


class Tower(NamedTuple):
    """One row of Table 1."""

    width: int
    layers: int
    heads: int


VISION: dict[Scale, Tower] = {
    "base": Tower(width=768, layers=12, heads=12),
    "middle": Tower(width=576, layers=12, heads=9),
    "small": Tower(width=384, layers=12, heads=6),
    "tiny": Tower(width=192, layers=12, heads=3),
}
TEXT: dict[Scale, Tower] = {
    "base": Tower(width=768, layers=12, heads=12),
    "middle": Tower(width=576, layers=8, heads=12),
    "small": Tower(width=384, layers=6, heads=12),
    "tiny": Tower(width=192, layers=4, heads=12),
}


def vision_config(scale: Scale, *, image_size: int = 224, patch_size: int = 16, drop_path: float = 0.0) -> VisionConfig:
    """The image tower of a scale, for pictures of `image_size` pixels a side."""
    return VisionConfig(
        **_row(VISION, scale)._asdict(), image_size=image_size, patch_size=patch_size, drop_path=drop_path
    )


def text_config(
    scale: Scale,
    *,
    vocab_size: int = 30524,
    max_positions: int = 512,
    fusion_layers: int | None = None,
    dropout: float = 0.1,
    layers: int | None = None,
) -> TextConfig:
    """The text tower of a scale; `layers` replaces the scale's own number (ALBEF's 12)."""
    row = _row(TEXT, scale)
    return TextConfig(
        width=row.width,
        layers=layers or row.layers,
        heads=row.heads,
        vocab_size=vocab_size,
        max_positions=max_positions,
        fusion_layers=fusion_layers,
        dropout=dropout,
    )


def _row(table: dict[Scale, Tower], scale: Scale) -> Tower:
    if scale not in table:
        raise ValueError(f"there is no scale {scale!r}; Table 1 has {', '.join(table)}")
    return table[scale]
