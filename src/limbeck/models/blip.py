"""BLIP: text alone, text over a picture, and text written from one, by the same layers (Li et al., 2022)."""

from __future__ import annotations

from typing import final

from limbeck.models.fusion import FusionVLM


@final
class Blip(FusionVLM):
    """All layers read a text alone, and read it again over the picture."""

    @property
    def text_layers(self) -> int:
        return self.config.text.layers
