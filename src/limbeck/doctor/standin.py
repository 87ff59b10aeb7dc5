"""A recipe's models at a size that this machine can hold: the same weights, fewer layers of the language models.

A folder of the same files whose config.json says fewer layers is what transformers loads the first layers from. Widths,
tables and heads stay whole, so tokens, gradients and what a layer keeps for the backward pass are the real ones, and
the whole model is put together from its config on the meta device to be counted.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig

from limbeck.doctor.weights import with_layers
from limbeck.methods.ctvlm import CTVLM
from limbeck.models.duet import Duet
from limbeck.models.duet_config import DuetConfig
from limbeck.models.files import CONFIG
from limbeck.models.hub import local_model
from limbeck.recipe.ctvlm import CTVLMRecipe
from limbeck.recipe.writers import LanguageModelChoice

LAYERS = 2
"""Of each language model that is cut."""
BYTES = 4
"""Of one weight as it is loaded."""
LARGEST = 2 * 10**9
"""Weights past which a model is cut even where it would fit: the checks would take too long."""
WORTH = 10**8
"""Weights from which a language model is worth cutting."""

_LAYER = re.compile(r"\.(\d+)(?=\.|$)")


class Size(NamedTuple):
    """A language model, before it is made."""

    weights: int
    layers: int


def size_of(choice: LanguageModelChoice, vocabulary: int) -> Size:
    """From the folder's files, or near enough from a new model's shape."""
    if choice.folder is None:
        assert choice.width is not None
        assert choice.layers is not None
        return Size(16 * choice.layers * choice.width**2 + 2 * vocabulary * choice.width, choice.layers)
    folder = local_model(choice.folder)
    return Size(_weights_in(folder), AutoConfig.from_pretrained(folder).num_hidden_layers)


def shortened(recipe: CTVLMRecipe, sizes: dict[str, Size], folder: Path) -> CTVLMRecipe:
    """The recipe with the first layers of its larger language models; `folder` is where their folders are made."""
    changes = {}
    for role, choice in (("tiny", recipe.duet.tiny), ("large", recipe.duet.large)):
        if sizes[role].weights < WORTH or sizes[role].layers <= LAYERS:
            continue
        if choice.folder is None:
            changes[role] = choice.model_copy(update={"layers": LAYERS})
        else:
            changes[role] = choice.model_copy(update={"folder": str(_cut(local_model(choice.folder), folder / role))})
    stages = tuple(
        stage.model_copy(update={"trainable": tuple(_LAYER.sub(_first_layers, glob) for glob in stage.trainable)})
        for stage in recipe.stages
    )
    return recipe.model_copy(update={"duet": recipe.duet.model_copy(update=changes), "stages": stages})


def whole_method(method: CTVLM, sizes: dict[str, Size], recipe: CTVLMRecipe) -> CTVLM:
    """`method` with all its layers and the recipe's own stages, on the meta device."""
    config = method.duet.config
    tiny = config.tiny_part.to_dict()
    tiny["text"] = with_layers(config.tiny_part.text_part, sizes["tiny"].layers).to_dict()
    large = with_layers(config.large_part, sizes["large"].layers)
    whole = DuetConfig(tiny=tiny, large=large.to_dict(), features=config.features, connector=config.connector)
    plan = [
        replace(stage, trainable=own.trainable or stage.trainable)
        for stage, own in zip(method.plan, recipe.stages, strict=True)
    ]
    with torch.device("meta"):
        return CTVLM(Duet(whole), method.vocabulary, plan, recipe.duet.embedding)


def _first_layers(number: re.Match[str]) -> str:
    """A layer's number as that of one of the first layers."""
    return f".{min(int(number[1]), LAYERS - 1)}"


def _cut(folder: Path, target: Path) -> Path:
    """A folder of the same files for a model of fewer layers."""
    target.mkdir(parents=True)
    for file in folder.resolve().iterdir():
        if file.name != CONFIG and file.is_file():
            (target / file.name).symlink_to(file)
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    with_layers(config, LAYERS).save_pretrained(target)
    return target


def _weights_in(folder: Path) -> int:
    """From the headers of a folder's safetensors files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total
