"""What recipes of every method are made into objects with."""

from __future__ import annotations

from limbeck.recipe.shared import RunSettings
from limbeck.training.schedule import Schedule, epoch_schedule


def build_schedule(recipe: RunSettings) -> Schedule | None:
    """The papers' learning rate; None leaves it to TrainingArguments."""
    return None if recipe.schedule is None else epoch_schedule(**recipe.schedule.model_dump())
