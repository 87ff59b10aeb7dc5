"""What recipes of every method are made into objects with."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from limbeck.recipe.shared import RecipeError, RunSettings
from limbeck.training.schedule import Schedule, epoch_schedule

ASSETS = Path(str(files("limbeck"))) / "assets"


def shipped(folder: str) -> str:
    """A model folder's path; `limbeck:NAME` is one that comes with the package."""
    kind, _, name = folder.partition(":")
    if kind != "limbeck":
        return folder
    if not (ASSETS / name / "config.json").is_file():
        choices = sorted(path.parent.name for path in ASSETS.glob("*/config.json"))
        raise RecipeError(f"{folder}: no such model comes with limbeck; there are {', '.join(choices)}")
    return str(ASSETS / name)


def build_schedule(recipe: RunSettings) -> Schedule | None:
    """The papers' learning rate; None leaves it to TrainingArguments."""
    if recipe.schedule is None:
        return None
    settings = recipe.schedule.model_dump()
    return epoch_schedule(settings.pop("kind"), peak=recipe.training.get("learning_rate", 5e-5), **settings)
