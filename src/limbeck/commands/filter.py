"""`limbeck filter`: captions that hold every noun phrase, and none too often."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from limbeck.phrases.parts import PartDone

_NEEDED = ("spacy", "duckdb", "pyarrow", "threadpoolctl")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def filter_command(
    inputs: Annotated[list[str], typer.Argument(help=".jsonl, .json or .tar; shards also as train-{000..012}.tar")],
    out: Annotated[Path, typer.Option(help="the folder of the result; the same command goes on after a crash")],
    least: Annotated[int, typer.Option(help="captions that a phrase must have to count", min=1)] = 3,
    most: Annotated[int, typer.Option(help="captions that are drawn of a phrase that has more", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="of the draw")] = 0,
    where: Annotated[list[str] | None, typer.Option(help="only records with this field value: split=train")] = None,
    caption_field: Annotated[str | None, typer.Option(help="the field of captions, where it has another name")] = None,
    pipeline: Annotated[str | None, typer.Option(help="another spaCy pipeline: its name or folder")] = None,
    processes: Annotated[int | None, typer.Option(help="cores; else all that this process may use", min=1)] = None,
    memory: Annotated[str, typer.Option(help="what counting and choosing may use: 2GB, 500MB")] = "2GB",
    ray: Annotated[str | None, typer.Option(help="a Ray cluster's address, or local")] = None,
    max_skipped: Annotated[float, typer.Option(help="share of broken records past which nothing is chosen")] = 0.01,
    keys: Annotated[bool, typer.Option("--keys", help="write ids of chosen records instead of the records")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON, for scripts")] = False,
) -> None:
    """Choose captions by their noun phrases: every phrase that is frequent enough is there, none too often."""
    _check_installed()
    from limbeck.phrases.choose import ChoiceConfig
    from limbeck.phrases.filter import Resources, filter_captions
    from limbeck.phrases.inputs import CaptionsConfig

    captions = CaptionsConfig(inputs=inputs, where=dict(map(_pair, where or ())), caption_field=caption_field)
    choice = ChoiceConfig(least=least, most=most, seed=seed)
    resources = Resources(processes=processes or len(os.sched_getaffinity(0)), memory=_bytes(memory), ray=ray)
    with _bar() as bar:
        task = bar.add_task("phrases", total=None, captions=0)
        found = 0

        def progress(done: PartDone | None, parts: int) -> None:
            nonlocal found
            found += done.captions if done else 0
            bar.update(task, advance=1, total=parts, captions=found)

        summary = filter_captions(
            captions,
            choice,
            out,
            resources,
            pipeline=pipeline,
            max_skipped=max_skipped,
            keys_only=keys,
            progress=progress,
        )
    if as_json:
        sys.stdout.write(json.dumps(summary.to_json(), indent=2) + "\n")
        return
    console, chosen = Console(), summary.choice
    rate = f" at {summary.captions_per_second:,.0f} captions/s" if summary.captions_per_second is not None else ""
    console.print(f"{summary.captions:,} captions{rate}; {summary.broken:,} broken records left out", highlight=False)
    console.print(
        f"{chosen.phrases:,} phrases, {chosen.kept_phrases:,} of them in {least} captions or more, "
        f"{chosen.sampled_phrases:,} in more than {most}; counted in {summary.counting_seconds:.1f} s",
        highlight=False,
    )
    console.print(f"{chosen.chosen:,} captions chosen, in {sum(each.records for each in summary.written):,} records:")
    for file in dict.fromkeys(each.file for each in summary.written):
        console.print(f"  [bold]{file}[/bold]", highlight=False, soft_wrap=True)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("parts, {task.fields[captions]:,} captions"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _check_installed() -> None:
    from limbeck.data.examples import DataError

    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise DataError(f"limbeck filter needs {' and '.join(missing)}, not installed: pip install 'limbeck[filter]'")


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ValueError(f"--where {text}: wanted field=value, such as split=train")
    return name, value


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", text.strip().upper())
    if not found:
        raise ValueError(f"--memory {text}: wanted a size such as 2GB or 500MB")
    size = int(float(found[1]) * _UNITS[found[2]])
    if size < 256 << 20:
        raise ValueError(f"--memory {text}: 256MB is the least")
    return size
