"""What recipes of every method are made into objects with."""

from __future__ import annotations

from limbeck.recipe.shared import RunSettings
from limbeck.training.schedule import Schedule, epoch_schedule


def build_schedule(recipe: RunSettings) -> Schedule | None:
    """The papers' learning rate; None leaves it to TrainingArguments."""
    if recipe.schedule is None:
        return None
    settings = recipe.schedule.model_dump()
    return epoch_schedule(settings.pop("kind"), peak=recipe.training.get("learning_rate", 5e-5), **settings)
