"""Run a recipe, whichever method it is of."""

from __future__ import annotations

from pathlib import Path

from limbeck.heap import keep_freed_memory
from limbeck.recipe import CoMDRecipe, CTVLMRecipe, Recipe
from limbeck.runs.comd import run_comd
from limbeck.runs.ctvlm import run_ctvlm
from limbeck.runs.dlip import run_dlip


def run_recipe(recipe: Recipe) -> Path:
    """Do all that a recipe says, going on where an earlier call was cut off. Returns the run folder.

    Of several processes (torchrun) all train, and the first one alone does what comes after.
    Everything that can be checked is checked before training starts. Raises RecipeError, DataError, ValueError.
    """
    keep_freed_memory()
    match recipe:
        case CoMDRecipe():
            return run_comd(recipe)
        case CTVLMRecipe():
            return run_ctvlm(recipe)
        case _:
            return run_dlip(recipe)
