"""Run a recipe, whichever method it is of."""

from __future__ import annotations

from pathlib import Path

from limbeck.recipe import CTVLMRecipe, Recipe
from limbeck.runs.ctvlm import run_ctvlm
from limbeck.runs.dlip import run_dlip


def run_recipe(recipe: Recipe) -> Path:
    """Do all that a recipe says, going on where an earlier call was cut off. Returns the run folder.

    Of several processes (torchrun) all train, and the first one alone does what comes after.
    Everything that can be checked is checked before training starts. Raises RecipeError, DataError, ValueError.
    """
    return run_ctvlm(recipe) if isinstance(recipe, CTVLMRecipe) else run_dlip(recipe)
