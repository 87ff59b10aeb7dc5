"""`limbeck pool`: what a competition has gathered, and its instructions and answers as files, in and out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.data.examples import DataError

app = typer.Typer(no_args_is_help=True, help="Look into a competition's pool; instructions and answers in and out.")
console = Console()

PoolName = Annotated[Path, typer.Argument(metavar="POOL", help="a pool.sqlite, or the run folder that has one")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]
Images = Annotated[
    Path | None,
    typer.Option(
        help="folder that pictures' paths start from and are named by; else the file's own", show_default=False
    ),
]


@app.command("stats")
def show_stats(pool: PoolName, as_json: AsJson = False) -> None:
    """Instructions, answers, assessments, difficulty and cost by round; also while a run writes to it."""
    from limbeck.competition.pool import Pool
    from limbeck.competition.pool_stats import stats

    with Pool.open(_file(pool), readonly=True) as opened:
        found = stats(opened)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    console.print(f"[bold]{escape(found['pool'])}[/bold]: {found['images']} pictures", highlight=False)
    for name in ("instructions", "answers", "assessments", "decisions", "augmentations", "refusals", "cost"):
        if found[name]:
            console.print(_table(name, found[name]))
    for round, bins in found["difficulty"].items():
        console.print(_histogram(f"difficulty in round {round}", bins))


@app.command("show")
def show_instruction(
    pool: PoolName, instruction: Annotated[int, typer.Argument(help="its number")], as_json: AsJson = False
) -> None:
    """One instruction: what it was written from, its answers and assessments, what was written from it."""
    from limbeck.competition.pool import Pool
    from limbeck.competition.pool_stats import story

    with Pool.open(_file(pool), readonly=True) as opened:
        found = story(opened, instruction)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        return
    own = found["instruction"]
    console.print(f"[bold]{own['id']}[/bold]  round {own['round']}  {escape(str(own['name'] or 'written'))}")
    console.print(f"picture: {escape(str(found['picture'] or own['image']))}", highlight=False)
    for each in found["ancestors"]:
        console.print(f"  {each['id']} (round {each['round']}): {escape(each['text'])}", highlight=False)
    console.print(f"[bold]{escape(own['text'])}[/bold]", highlight=False)
    for name in ("answers", "assessments", "decisions", "augmentations", "refusals", "children"):
        for each in found[name]:
            facts = ", ".join(f"{key} {each[key]}" for key in _SHOWN[name] if each[key] is not None)
            said = each["text"] if "text" in each else each.get("reason")
            console.print(f"[dim]{name}[/dim] {escape(facts)}", highlight=False)
            if said:
                console.print(f"    {escape(said)}", highlight=False)


@app.command("export")
def export_pool(
    pool: PoolName,
    file: Annotated[Path, typer.Argument(help="what to write: .json, .jsonl or .csv")],
    format: Annotated[
        Literal["llava", "messages", "csv"] | None,
        typer.Option(help="else by the file's ending: llava for .json, messages for .jsonl", show_default=False),
    ] = None,
    rounds: Annotated[
        list[int] | None, typer.Option("--round", help="only what this round wrote; 0: the seeds", show_default=False)
    ] = None,
    images: Images = None,
    answers_of: Annotated[
        str | None, typer.Option(help="fingerprint of the teacher, where several have answered", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="id of its prompt, where it answered by several", show_default=False)
    ] = None,
) -> None:
    """Instructions with the teacher's answers, to train on: regrouped by picture, or a CSV row for each."""
    from limbeck.competition.pool import Pool
    from limbeck.competition.pool_export import FORMATS, export, teacher_of

    if format is None and file.suffix not in FORMATS:
        raise DataError(f"{file}: wanted a file that ends in {', '.join(FORMATS)}, or --format")
    with Pool.open(_file(pool), readonly=True) as opened:
        author = teacher_of(opened, answers_of, prompt)
        count = export(opened, file, format or FORMATS[file.suffix], author=author, rounds=rounds, images=images)
    console.print(f"{count} instructions with answers: [bold]{escape(str(file))}[/bold]", highlight=False)


@app.command("import")
def import_instructions(
    pool: PoolName,
    file: Annotated[Path, typer.Argument(help="LLaVA's JSON, messages JSONL, rows with an instruction, or CSV")],
    images: Images = None,
    answers_of: Annotated[
        str | None,
        typer.Option(
            help="keep the file's answers as the teacher's, under this fingerprint; else they are not read",
            show_default=False,
        ),
    ] = None,
    max_skipped: Annotated[float, typer.Option(help="share of broken records past which nothing is imported")] = 0.01,
) -> None:
    """Add pictures and instructions to a pool, which is made where it is missing. Dialogues become single turns."""
    from limbeck.competition.pool import Pool
    from limbeck.competition.pool_import import read_seeds
    from limbeck.competition.pool_records import Author
    from limbeck.competition.prompts import PromptsConfig, load_prompt

    seeds, skipped = read_seeds(file, images, max_skipped=max_skipped)
    for entry in skipped:
        console.print(f"left out {escape(str(entry))}", highlight=False)
    with Pool.open(_file(pool), create=True) as opened:
        author = None
        if answers_of is not None:
            prompt = load_prompt("answer", PromptsConfig().answer, Path())
            opened.add_model(answers_of, answers_of)
            opened.add_prompt(prompt.id, prompt.role, prompt.text)
            author = Author(answers_of, prompt.id)
        added = opened.add_seeds(seeds, author)
    console.print(f"{added} new instructions of {len(seeds)}: [bold]{escape(str(_file(pool)))}[/bold]", highlight=False)


@app.command("forget")
def forget_refusals(pool: PoolName) -> None:
    """Let the calls that were refused be asked again when the run goes on."""
    from limbeck.competition.pool import Pool

    with Pool.open(_file(pool)) as opened:
        console.print(f"{opened.forget_refusals()} refused calls will be asked again", highlight=False)


_SHOWN: Mapping[str, tuple[str, ...]] = {
    "answers": ("role", "round", "model", "new_tokens", "seconds"),
    "assessments": ("round", "order", "attempt", "score_1", "score_2", "model"),
    "decisions": ("round", "difficulty", "kind", "chosen"),
    "augmentations": ("round", "attempt", "verdict", "model"),
    "refusals": ("role", "round", "order", "attempt"),
    "children": ("id", "round"),
}


def _file(pool: Path) -> Path:
    return pool / "pool.sqlite" if pool.is_dir() else pool


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column, first in rows[0].items():
        table.add_column(column, justify="left" if isinstance(first, str) else "right")
    for row in rows:
        table.add_row(*(f"{each:.1f}" if isinstance(each, float) else escape(str(each)) for each in row.values()))
    return table


def _histogram(title: str, bins: Sequence[Mapping[str, float]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("from", "to", "instructions", ""):
        table.add_column(column, justify="right" if column else "left")
    most = max(each["count"] for each in bins)
    for each in bins:
        bar = "█" * round(30 * each["count"] / most)
        table.add_row(f"{each['from']:g}", f"{each['to']:g}", f"{each['count']}", bar)
    return table
