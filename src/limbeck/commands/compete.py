"""`limbeck compete`: hold a CoMD recipe's competition, or say beforehand what it would ask and train."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from limbeck.recipe import CoMDRecipe

console = Console()


def compete(
    recipe: Annotated[str, typer.Argument(help="a YAML file, or a shipped recipe such as comd/laptop")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="changes, such as competition.tau=0.5 seed=1", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would be asked and trained")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the plan of --dry-run as JSON")] = False,
) -> None:
    """Teacher and student compete: tune, assess both, write harder instructions, tune again (CoMD).

    The same command goes on after a crash; nothing is asked twice. `limbeck pool` looks into what was said.
    """
    from limbeck.recipe import CoMDRecipe, RecipeError, find_recipe, load_recipe
    from limbeck.run import run_recipe

    settings = load_recipe(recipe, overrides or ())
    if not isinstance(settings, CoMDRecipe) or settings.competition is None:
        raise RecipeError(f"{find_recipe(recipe)}: no competition in it; `limbeck train` runs it")
    try:
        if dry_run:
            _tell(settings, as_json)
            return
        folder = run_recipe(settings)
    except RecipeError as error:
        raise RecipeError(f"{find_recipe(recipe)}: {error}") from None
    console.print(f"done: [bold]{folder}[/bold]; its page: limbeck report {folder}")


def _tell(recipe: CoMDRecipe, as_json: bool) -> None:
    from limbeck.doctor.competition import plan_of
    from limbeck.doctor.plan_screen import print_plan

    plan = plan_of(recipe)
    if as_json:
        sys.stdout.write(json.dumps(plan.to_json(), indent=2) + "\n")
    else:
        print_plan(console, plan)
