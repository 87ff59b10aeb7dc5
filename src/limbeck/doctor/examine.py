"""A recipe of any method examined."""

from __future__ import annotations

from limbeck.doctor.comd import examine_comd
from limbeck.doctor.ctvlm import examine_ctvlm
from limbeck.doctor.dlip import examine_dlip
from limbeck.doctor.finding import Finding
from limbeck.doctor.machine import planned_processes
from limbeck.recipe import CoMDRecipe, CTVLMRecipe, Recipe


def examine(
    recipe: Recipe, *, steps: bool = True, memory: float | None = None, processes: int | None = None
) -> list[Finding]:
    """Everything that can be seen before training; nothing is written.

    `steps` tries a few real steps of every stage too. `memory` is that of a device, in GiB, for which to say what fits.
    `processes` will train, a device each; None takes torchrun's WORLD_SIZE, or one.
    Raises RecipeError or DataError where recipe or data cannot be read at all.
    """
    processes = processes or planned_processes()
    if isinstance(recipe, CTVLMRecipe):
        return examine_ctvlm(recipe, steps=steps, memory=memory, processes=processes)
    if isinstance(recipe, CoMDRecipe):
        return examine_comd(recipe, processes=processes)
    return examine_dlip(recipe, steps=steps, memory=memory, processes=processes)
