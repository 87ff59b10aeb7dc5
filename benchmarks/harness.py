"""What every benchmark shares: options, interleaved timing, peak memory, the table, claims, and docs/results.md.

A benchmark measures rows, derives claims from them, and hands both to `publish`:

    options = parse(__doc__)
    publish("attention_kl", rows, claims, options)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
Row = Mapping[str, str | float | int]
Work = Callable[[], object]


@dataclass(frozen=True)
class Claim:
    """Something wanted of what was measured, and whether it holds."""

    name: str
    wanted: str
    measured: str
    holds: bool


def at_least(name: str, wanted: float, measured: float, unit: str = "") -> Claim:
    """The claim that a measured figure reaches the wanted one."""
    return Claim(name, f">= {wanted:g}{unit}", f"{measured:.3g}{unit}", measured >= wanted)


def parser(description: str | None, *, timed: bool = True) -> argparse.ArgumentParser:
    """The options of every benchmark; a script may add its own before it parses.

    A benchmark that is not `timed` has no rounds, and runs where training does: on a GPU if there is one.
    """
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, metavar="FILE", help="write rows and claims there")
    either = options.add_mutually_exclusive_group()
    either.add_argument("--smoke", action="store_true", help="the whole path at small sizes, in under two minutes")
    either.add_argument("--write-docs", action="store_true", help=f"write this benchmark's part of {RESULTS.name}")
    if not timed:
        options.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
        return options
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--rounds", type=int, default=7, help="timed rounds, of which the median counts")
    return options


def parse(description: str | None) -> argparse.Namespace:
    """The parsed options of a benchmark that adds none."""
    return parser(description).parse_args()


def milliseconds(variants: Mapping[str, Work], rounds: int, device: str) -> dict[str, float]:
    """Median time of each variant over interleaved rounds, so that all share what else the machine does.

    One untimed round comes first.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, work in variants.items():
            _synchronize(device)
            start = time.perf_counter()
            work()
            _synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(found[1:]) for name, found in times.items()}


def peak_mebibytes(device: str, make: Callable[..., Work], *arguments: object) -> float:
    """Peak memory of one call of ``make(*arguments)()`` above what stands before it, in MiB, in a process of its own.

    `make` is a function of the benchmark's top level: it makes the inputs, runs what is set up only once (a call at
    small size), and gives back the work. On CPU it is the process's resident set (Linux only), on CUDA what PyTorch
    allocates.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, device, make, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{make.__name__}{arguments}: the process that measures memory died, see above") from None
    finally:
        process.join()


def _measure(sender: Any, device: str, make: Callable[..., Work], arguments: Sequence[object]) -> None:
    work = make(*arguments)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        sender.send((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
        before = _status("VmRSS")
        work()
        sender.send((_status("VmHWM") - before) / 2**10)


def _status(field: str) -> int:
    """One size of this process, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}; memory on the CPU is measured on Linux only")


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def machine(device: str) -> str:
    """What a figure was measured on: processor or GPU, cores, versions."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {versions}"
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists() and (
        found := re.search(r"model name\s*: (.*)", cpuinfo.read_text())
    ):
        model = found[1]
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {versions}"


def publish(
    name: str,
    rows: Sequence[Row],
    claims: Sequence[Claim],
    options: argparse.Namespace,
    *,
    table: Sequence[Row] | None = None,
    note: str = "",
) -> None:
    """Print rows and claims, and write them where the options say.

    `table` is shown to people instead of the rows, where those say too much for a page; `note` stands above it.
    """
    shown = rows if table is None else table
    where, date = machine(options.device), datetime.now(UTC).date().isoformat()
    console = Console()
    if note:
        console.print(note, highlight=False)
    console.print(_table(f"{name} on {where}", [dict(row) for row in shown]))
    verdicts = [{**asdict(claim), "holds": "yes" if claim.holds else "no"} for claim in claims]
    console.print(_table("claims", verdicts))
    if options.json:
        content = {"rows": list(map(dict, rows)), "claims": list(map(asdict, claims)), "machine": where, "date": date}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    if options.write_docs:
        head = f"{where}; {date}" + (f"\n\n{note}" if note else "")
        write_section(RESULTS, name, f"{head}\n\n{_markdown(shown)}\n\n{_markdown(verdicts)}")


def write_section(page: Path, name: str, body: str) -> None:
    """Put `body` between the page's markers of that name; without them a section is added at the end."""
    section = f"<!-- {name} -->\n{body}\n<!-- /{name} -->"
    text = page.read_text() if page.exists() else "# Results\n\nWritten by the scripts in benchmarks/.\n"
    pattern = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: section, text)
    else:
        text = f"{text.rstrip()}\n\n## {name}\n\n{section}\n"
    page.write_text(text)


def _columns(rows: Sequence[Row]) -> list[str]:
    """Every column that a row has, in the order of first sight."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _cell(value: str | float | int) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in _columns(rows):
        numbers = all(not isinstance(row.get(column, 0), str) for row in rows)
        table.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in _columns(rows)))
    return table


def _markdown(rows: Sequence[Row]) -> str:
    columns = _columns(rows)
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
