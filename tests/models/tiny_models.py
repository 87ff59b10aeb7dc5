"""Tiny towers, and weights large enough that a mistake shows."""

import torch
from torch import nn

from limbeck.models.med import TextConfig
from limbeck.models.vision import VisionConfig


def vision(width: int = 24, **values: int) -> VisionConfig:
    return VisionConfig(**{"width": width, "layers": 2, "heads": 2, "image_size": 16, "patch_size": 4, **values})


def text(width: int = 24, **values: int) -> TextConfig:
    ids = {"pad_token_id": 0, "sep_token_id": 3, "dec_token_id": 5, "enc_token_id": 6}
    return TextConfig(
        **{"width": width, "layers": 3, "heads": 4, "vocab_size": 50, "max_positions": 32, **ids, **values}
    )


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight a value of its own, biases and norms too; in `eval` mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                spread = 0.25 if parameter.ndim > 1 else 0.1
                parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()
