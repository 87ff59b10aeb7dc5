"""CTVLM recipes that are examined in a second: some scenes, language models of width 16 and 32, the shipped eye."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from limbeck.recipe import CTVLMRecipe, load_recipe

SCENES = {"source": "builtin:scenes", "count": 24, "vocabulary": 36, "size": 64}
CAPTIONS = [{"source": "captions", "of": SCENES}]
QUESTIONS = [{"source": "instructions", "of": SCENES}]
NEW = {"kind": "llama", "width": 32, "layers": 2, "heads": 2, "max_positions": 192}
RECIPE: dict[str, Any] = {
    "method": "ctvlm",
    "seed": 1,
    "duet": {
        "eye": "limbeck:quickstart_teacher",
        "tiny": {"kind": "opt", "width": 16, "layers": 2, "heads": 2, "max_positions": 128},
        "large": NEW,
        "embedding": 16,
    },
    "tokenizer": {"tokenizer": "bpe", "vocab_size": 420},
    "data": {"dialogues": {"max_length": 128, "needs_image": True}},
    "stages": [
        {"name": "align_tiny", "kind": "align_tiny", "data": CAPTIONS},
        {"name": "align_large", "kind": "align_large", "data": CAPTIONS},
        {"name": "tune", "kind": "tune", "data": QUESTIONS, "chat": {"template": "vicuna_v1", "system": ""}},
    ],
    "training": {
        "per_device_train_batch_size": 4,
        "max_steps": 30,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
    },
    "gradient_share_steps": 0,
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, mappings key by key; what is of another kind, a folder say, takes the whole place."""
    result = deepcopy(base)
    for key, value in changes.items():
        both = isinstance(result.get(key), dict) and isinstance(value, dict)
        other_kind = both and value.keys() & {"folder", "tokenizer"}
        result[key] = merged(result[key], value) if both and not other_kind else value
    return result


def stir(model: nn.Module) -> None:
    """Give every weight another value, as training does."""
    for parameter in model.parameters():
        parameter += (0.1 if parameter.ndim > 1 else 0.05) * torch.randn_like(parameter)


def taken(folder: str) -> dict[str, Any]:
    """The change of a recipe that takes its large model, and the tokenizer, from a folder."""
    return {"duet": {"large": {"folder": folder}}, "tokenizer": {"tokenizer": "folder", "path": folder}}


def recipe_of(folder: Path, changes: dict[str, Any] | None = None) -> CTVLMRecipe:
    """The recipe with changes, as an object."""
    path = folder / "made.yaml"
    path.write_text(yaml.safe_dump(merged({**RECIPE, "output": str(folder / "run")}, changes or {})))
    recipe = load_recipe(str(path))
    assert isinstance(recipe, CTVLMRecipe)
    return recipe
