"""The command line: train, compete, doctor, evaluate, profile, report, quickstart, recipe, pool, filter.

Exit codes: 0 done; 1 the run failed; 2 the command, recipe or data is wrong, or a file cannot be read or written before
training began.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from limbeck.commands import pool
from limbeck.commands.compete import compete
from limbeck.commands.filter import filter_command
from limbeck.errors import TRAINING_BEGAN, Halted, WrongInput

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
app.command()(compete)
app.add_typer(pool.app, name="pool")
app.command("filter")(filter_command)
console = Console()


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"limbeck {version('limbeck')}\n")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print limbeck's version")
    ] = False,
) -> None:
    """What stands before a command."""


RecipeName = Annotated[str, typer.Argument(help="a YAML file, or a shipped recipe such as dlip/quickstart")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes, such as training.learning_rate=1e-4 seed=1", show_default=False)
]
Folder = Annotated[Path, typer.Argument(help="a run folder, or a model folder with its tokenizer")]


@app.command()
def train(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Run a recipe: train, keep the student, evaluate and profile it. The same command goes on after a crash."""
    from limbeck.recipe import RecipeError, find_recipe, load_recipe
    from limbeck.run import run_recipe

    settings = load_recipe(recipe, overrides or ())
    try:
        folder = run_recipe(settings)
    except RecipeError as error:
        raise RecipeError(f"{find_recipe(recipe)}: {error}") from None
    place = escape(str(folder))
    console.print(f"done: [bold]{place}[/bold]; its page: limbeck report {place}", soft_wrap=True)


@app.command()
def doctor(
    recipe: RecipeName,
    overrides: Overrides = None,
    no_steps: Annotated[bool, typer.Option("--no-steps", help="try no real steps, tell no hours")] = False,
    memory: Annotated[float | None, typer.Option(help="GiB of a device that is not here, to see what fits")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="that will train; WORLD_SIZE or 1 by default")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for scripts")] = False,
) -> None:
    """Look at all that can go wrong before anything trains. Exit code 1 where a check fails; nothing is written."""
    from contextlib import redirect_stdout

    from limbeck.doctor import as_json as findings_as_json
    from limbeck.doctor import examine, failed, print_findings
    from limbeck.recipe import RecipeError, find_recipe, load_recipe

    settings = load_recipe(recipe, overrides or ())
    try:
        with redirect_stdout(sys.stderr):
            findings = examine(settings, steps=not no_steps, memory=memory, processes=processes)
    except RecipeError as error:
        raise RecipeError(f"{find_recipe(recipe)}: {error}") from None
    if as_json:
        sys.stdout.write(json.dumps(findings_as_json(recipe, findings), indent=2) + "\n")
    else:
        print_findings(console, recipe, findings)
    if failed(findings):
        raise typer.Exit(1)


@app.command()
def evaluate(folder: Folder, recipe: RecipeName, out: Annotated[Path, typer.Option(help="where the rows go")]) -> None:
    """Evaluate a model on the held-out data that a recipe names; every prediction stays as a row."""
    from limbeck.assemble.comd import RoleModels
    from limbeck.recipe import CoMDRecipe, CTVLMRecipe, load_recipe
    from limbeck.runs.dlip import evaluate_saved
    from limbeck.runs.writers import evaluate_saved as evaluate_writer

    settings = load_recipe(recipe)
    if isinstance(settings, CTVLMRecipe | CoMDRecipe):
        judge = settings.judge if isinstance(settings, CoMDRecipe) else None
        asker = RoleModels().asker(judge) if judge is not None else None
        evaluate_writer(out, folder, settings, asker)
    else:
        evaluate_saved(out, folder, settings)
    console.print_json((out / "evaluation" / "summary.json").read_text())


@app.command()
def profile(
    what: Annotated[list[str] | None, typer.Argument(help="recipes, run folders or model folders")] = None,
    scales: Annotated[bool, typer.Option("--scales", help="every tower of DLIP's Table 1 instead")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for scripts")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures at a time when latency is measured")] = 1,
) -> None:
    """Parameters, MACs in both conventions, latency and peak memory, side by side."""
    from limbeck.evaluation.profile import scale_table
    from limbeck.profiles import compare_profiles, print_profiles, print_scales

    if scales:
        rows = scale_table()
        console.print_json(json.dumps(rows)) if as_json else print_scales(console, rows)
        return
    if not what:
        raise ValueError("limbeck profile: name a recipe or a folder, or give --scales")
    profiles = compare_profiles(what, batch_size)
    console.print_json(json.dumps(profiles)) if as_json else print_profiles(console, profiles)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="run folders")],
    out: Annotated[Path | None, typer.Option(help="where report.html goes; else the first folder")] = None,
    title: Annotated[str, typer.Option(help="heading of the page")] = "limbeck",
) -> None:
    """One page (HTML, Markdown, JSON) that sets runs and their teacher side by side. Loads no model."""
    from limbeck.quickstart import report_runs

    paths = report_runs(out or folders[0], folders, title)
    html, markdown, as_json = (escape(str(path)) for path in (paths.html, paths.markdown, paths.json))
    console.print(f"[bold]{html}[/bold]\n{markdown}\n{as_json}", soft_wrap=True)


@app.command()
def quickstart(out: Annotated[Path, typer.Option(help="the folder of the result")] = Path("runs/quickstart")) -> None:
    """A first result in minutes, on a laptop: teacher, plain and distilled student, and the page that compares them."""
    from limbeck.quickstart import quickstart

    paths = quickstart(out)
    console.print(paths.markdown.read_text(), markup=False, soft_wrap=True)
    console.print(f"the page: [bold]{escape(str(paths.html))}[/bold]", soft_wrap=True)


@recipes.command("list")
def list_recipes() -> None:
    """The recipes that come with limbeck."""
    from limbeck.recipe import SHIPPED, shipped_recipes

    for name in shipped_recipes():
        first = (SHIPPED / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")
        console.print(f"[bold]{name}[/bold]  {first}")


@recipes.command("show")
def show_recipe(recipe: RecipeName, overrides: Overrides = None) -> None:
    """The recipe with everything resolved: base, overrides, defaults. It is checked on the way."""
    from limbeck.recipe import load_recipe

    values = json.loads(load_recipe(recipe, overrides or ()).model_dump_json())
    sys.stdout.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


@recipes.command("schema")
def recipe_schema() -> None:
    """The JSON Schema of a recipe, for editors."""
    from limbeck import recipe

    sys.stdout.write(json.dumps(recipe.recipe_schema(), indent=2) + "\n")


def main() -> None:
    """Entry point: what the user did wrong, or a disk does not let through, is one message and exit code 2.

    Once training has begun, only `WrongInput` is: anything else keeps its traceback, and the exit code is 1.
    """
    TRAINING_BEGAN.clear()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    try:
        app()
    except (WrongInput, OSError, ValueError) as error:
        if TRAINING_BEGAN.is_set() and not isinstance(error, WrongInput):
            raise
        _say(error)
        sys.exit(2)
    except Halted as error:  # a server that is gone, a round that wrote nothing: what was said is kept
        _say(error)
        sys.exit(1)


def _say(error: Exception) -> None:
    Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
