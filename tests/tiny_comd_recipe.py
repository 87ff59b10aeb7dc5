"""CoMD recipes that run in seconds: a teacher that learns its roles by heart on a few scenes, and a smaller student."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from tiny_ctvlm_recipe import SCENES

SHARES: dict[str, Any] = {"answer": 0.1, "assess": 0.7, "ask": 0.2}
ROLES: dict[str, Any] = {"source": "scene_roles", "of": {**SCENES, "count": 32}, "words": 1, "shares": SHARES}
INSTRUCTIONS: dict[str, Any] = {"source": "scene_instructions", "of": SCENES, "per_scene": 2}
CHAT: dict[str, Any] = {"template": "vicuna_v1", "system": ""}
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
}
COMMON: dict[str, Any] = {"method": "comd", "seed": 3, "training": TRAINING, "gradient_share_steps": 0}
PROMPTS: dict[str, str] = {"assessor": "laptop", "augmentor": "laptop"}


def language(width: int) -> dict[str, Any]:
    """A new language model of two layers."""
    return {"kind": "llama", "width": width, "layers": 2, "heads": 2, "max_positions": 256}


def teacher_recipe(folder: Path, eye: Path, *, steps: int = 400) -> Path:
    """A recipe of stages alone, whose student knows the roles well enough to write scores and questions."""
    stage = {"name": "roles", "kind": "tune", "data": [ROLES], "chat": CHAT, "training": {"max_steps": steps}}
    return _write(
        folder,
        student={"eye": str(eye), "language": language(48), "eye_layer": -1},
        tokenizer={"tokenizer": "bpe", "vocab_size": 500},
        stages=[stage],
        training={**TRAINING, "save_steps": 1000, "learning_rate": 5e-3, "per_device_train_batch_size": 8},
    )


def competition_recipe(folder: Path, eye: Path, teacher: Path, /, **changes: Any) -> Path:
    """Two tunings and the round between them; the run folder is `run` beside the recipe."""
    values: dict[str, Any] = {
        "student": {"eye": str(eye), "language": language(24), "eye_layer": -1},
        "tokenizer": {"tokenizer": "folder", "path": str(teacher)},
        "teacher": {"folder": str(teacher), "batch_size": 4},
        "competition": {
            "data": [INSTRUCTIONS],
            "tunings": 2,
            "tau": 0.0,
            "attempts": 5,
            "prompts": PROMPTS,
            "answer": {"max_new_tokens": 12},
            "assess": {"max_new_tokens": 48},
            "tuning": {"chat": CHAT, "training": {"max_steps": 4}},
        },
    }
    for name, change in changes.items():
        old = values.get(name)
        values[name] = old | change if isinstance(old, dict) and isinstance(change, dict) else change
    return _write(folder, **values)


def _write(folder: Path, **values: Any) -> Path:
    recipe = deepcopy(COMMON) | {"output": str(folder / "run")} | values
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
