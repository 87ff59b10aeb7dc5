"""A CTVLM recipe that trains in seconds: 8 scenes of 32 pixels, an eye of width 16 that sees four patches."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import CLIPVisionConfig, CLIPVisionModel

SCENES: dict[str, Any] = {"source": "builtin:scenes", "count": 8, "vocabulary": 36, "size": 32}
DIALOGUES: dict[str, Any] = {"source": "dialogue", "of": SCENES, "exchanges": 2}
CAPTIONS: dict[str, Any] = {"source": "captions", "of": SCENES, "draw": "one"}
CHAT: dict[str, Any] = {"template": "vicuna_v1", "system": ""}
STAGES: dict[str, dict[str, Any]] = {
    "language": {"kind": "language", "data": [DIALOGUES], "chat": CHAT},
    "align_tiny": {"kind": "align_tiny", "data": [CAPTIONS]},
    "align_large": {"kind": "align_large", "data": [CAPTIONS]},
    "tune": {"kind": "tune", "data": [DIALOGUES], "chat": CHAT},
}
"""The paper's stages by name, the first for models without pretrained weights."""
RECIPE: dict[str, Any] = {
    "method": "ctvlm",
    "seed": 3,
    "duet": {
        "tiny": {"kind": "opt", "width": 16, "layers": 2, "heads": 2, "max_positions": 192},
        "large": {"kind": "llama", "width": 24, "layers": 2, "heads": 2, "max_positions": 320},
        "embedding": 16,
    },
    "tokenizer": {"tokenizer": "bpe", "vocab_size": 400},
    "data": {"dialogues": {"max_length": 192, "needs_image": True}},
    "training": {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    },
    "gradient_share_steps": 0,
}


def stage(kind: str, **changes: Any) -> dict[str, Any]:
    """One of the paper's stages, named as its kind, with changes."""
    return {"name": kind, **deepcopy(STAGES[kind]), **changes}


def write_eye(folder: Path) -> Path:
    """An eye whose random weights, norms and biases too, do not look like a new model's."""
    torch.manual_seed(5)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    eye = CLIPVisionModel(config)
    with torch.no_grad():
        for parameter in eye.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    eye.save_pretrained(folder)
    return folder


def write_ctvlm_recipe(folder: Path, eye: Path, stages: list[dict[str, Any]], **changes: Any) -> Path:
    """Write the recipe as `recipe.yaml`, whose run folder is `run` beside it; `duet` and `training` change by key."""
    values = deepcopy(RECIPE) | {"output": str(folder / "run"), "stages": stages}
    values["duet"]["eye"] = str(eye)
    for name, change in changes.items():
        values[name] = values[name] | change if name in ("duet", "training") else change
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
