"""A recipe that trains in seconds: 64 scenes of 32 pixels, models of width 32, a teacher of width 48."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from limbeck.assemble.dlip import build_student, open_data, open_tokenizer
from limbeck.recipe import load_recipe

RECIPE: dict[str, Any] = {
    "seed": 3,
    "student": {
        "family": "blip",
        "vision": {"width": 32, "layers": 2, "heads": 2, "patch_size": 8, "image_size": 32},
        "text": {"width": 32, "layers": 2, "heads": 2, "dropout": 0.0, "max_positions": 64},
        "embedding": 16,
    },
    "tokenizer": {"tokenizer": "wordpiece", "vocab_size": 400},
    "data": {
        "train": [{"source": "builtin:scenes", "count": 64, "vocabulary": 36, "size": 32}],
        "transform": {"size": 32},
        "pairs": {"questions": 1},
    },
    "dlip": {"vlp": {"contrastive": {"queue_size": 20}}},
    "training": {
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    },
    "gradient_share_steps": 0,
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, mappings key by key."""
    result = deepcopy(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    """A teacher with its tokenizer, wider than the student; its weights are random, but no first ones."""
    folder = tmp_path_factory.mktemp("teacher")
    wide = {"student": {"vision": {"width": 48, "heads": 4}, "text": {"width": 48, "heads": 4}}, "output": "unused"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(merged(RECIPE, wide)))
    recipe = load_recipe(str(folder / "recipe.yaml"))
    tokenizer = open_tokenizer(recipe, open_data(recipe))
    torch.manual_seed(7)
    teacher = build_student(recipe, tokenizer, None)
    with torch.no_grad():
        for parameter in teacher.parameters():  # as training would have; a run refuses a teacher with first weights
            parameter += (0.1 if parameter.ndim > 1 else 0.05) * torch.randn_like(parameter)
    teacher.save(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_recipe(teacher_folder) -> Callable[..., Path]:
    """Write the recipe with changes into a folder, as `recipe.yaml` whose run folder is `run` beside it."""

    def write(folder: Path, changes: dict[str, Any] | None = None, *, teacher: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        values = merged(RECIPE, {"output": str(folder / "run"), **(changes or {})})
        if teacher:
            values["teacher"] = {"folders": [str(teacher_folder)]}
            values["tokenizer"] = {"tokenizer": "folder", "path": str(teacher_folder)}
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
