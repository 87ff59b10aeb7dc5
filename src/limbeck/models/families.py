"""The three families by name: a model from its config."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from limbeck.models.albef import Albef
from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.files import fill
from limbeck.models.fusion import FusionConfig, FusionVLM

FAMILIES = {"blip": Blip, "albef": Albef}


def build_model(config: FusionConfig | ClipConfig) -> FusionVLM | DualEncoder:
    """A model with random first weights."""
    return DualEncoder(config) if isinstance(config, ClipConfig) else FAMILIES[config.family](config)


def filled_model(config: FusionConfig | ClipConfig, state: dict[str, Tensor], origin: Path) -> FusionVLM | DualEncoder:
    """A model with the weights `state` under limbeck's names; ValueError where they do not fit (see `fill`)."""
    if isinstance(config, ClipConfig):
        model = build_model(config)
    else:
        with torch.device("meta"):
            model = build_model(config)
    fill(model, state, str(origin))
    return model
