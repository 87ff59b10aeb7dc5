"""The command line: train, evaluate, profile, report, quickstart, recipe.

Exit codes: 0 done; 1 the run failed; 2 the command, recipe or data is wrong, and nothing was trained.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler

app = typer.Typer(
    name="limbeck",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distil vision-language models: a light student, and what it lost and won, from one recipe.\n\n"
    "Start with [bold]limbeck quickstart[/bold]; then [bold]limbeck recipe list[/bold].",
)
recipes = typer.Typer(no_args_is_help=True, help="List, show and check recipes.")
app.add_typer(recipes, name="recipe")
console = Console()

RecipeName = Annotated[str, typer.Argument(help="a YAML file, or a shipped recipe such as dlip/quickstart")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes, such as training.learning_rate=1e-4 seed=1", show_default=False)
]
Folder = Annotated[Path, typer.Argument(help="a run folder, or a model folder with its tokenizer")]


@app.command()
def train(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Run a recipe: train, keep the student, evaluate and profile it. The same command goes on after a crash."""
    from limbeck.recipe import load_recipe
    from limbeck.run import run_recipe

    folder = run_recipe(load_recipe(recipe, overrides or ()))
    console.print(f"done: [bold]{folder}[/bold]; its page: limbeck report {folder}")


@app.command()
def evaluate(folder: Folder, recipe: RecipeName, out: Annotated[Path, typer.Option(help="where the rows go")]) -> None:
    """Evaluate a model on the held-out data that a recipe names; every prediction stays as a row."""
    from limbeck.assemble import open_data
    from limbeck.recipe import load_recipe
    from limbeck.run import examine, open_student

    settings = load_recipe(recipe)
    model, tokenizer = open_student(folder)
    examine(out, model, tokenizer, settings.evaluation, open_data(settings).examples)
    console.print_json((out / "evaluation" / "summary.json").read_text())


def main() -> None:
    """Entry point: what the user did wrong is one message and exit code 2, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    from limbeck.data.examples import DataError
    from limbeck.recipe import RecipeError

    try:
        app()
    except (RecipeError, DataError, ValidationError, FileNotFoundError, ValueError) as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
