"""The main table: quality and cost of every model, and what part of the teacher's a student has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from limbeck.report.runs import Run
from limbeck.report.writers import Writer

NONE = "\N{EM DASH}"
"""what a cell shows that was not measured"""


@dataclass(frozen=True)
class Column:
    """A measured quantity."""

    key: str
    label: str
    group: Literal["Retrieval", "Captioning", "Questions", "Benchmarks", "Cost"]
    meaning: str
    show: Callable[[float], str]

    @property
    def is_cost(self) -> bool:
        """Whether less is better."""
        return self.group == "Cost"


def one_decimal(value: float) -> str:
    """12.34 as 12.3."""
    return f"{value:.1f}"


def millions(value: float) -> str:
    """Parameters: 2345678 as 2.35 M."""
    return f"{value / 1e6:.3g} M" if value < 999.5e6 else f"{value / 1e9:.3g} G"


def operations(value: float) -> str:
    """Multiply-accumulates: 234567890 as 0.235 G, 23456789 as 23.5 M."""
    return f"{value / 1e9:.3g} G" if value >= 1e8 else f"{value / 1e6:.3g} M"


def milliseconds(value: float) -> str:
    """4.1234 as 4.12 ms."""
    return f"{value:.3g} ms" if value < 999.5 else f"{value:.0f} ms"


def mebibytes(value: float) -> str:
    """210.4 as 210 MiB."""
    return f"{value:.0f} MiB"


COLUMNS = (
    Column("TR@1", "TR@1", "Retrieval", "picture to caption: a right caption comes first, % of pictures", one_decimal),
    Column("TR@5", "TR@5", "Retrieval", "picture to caption: a right caption is among the first 5", one_decimal),
    Column("TR@10", "TR@10", "Retrieval", "picture to caption: a right caption is among the first 10", one_decimal),
    Column(
        "IR@1", "IR@1", "Retrieval", "caption to picture: the right picture comes first, % of captions", one_decimal
    ),
    Column("IR@5", "IR@5", "Retrieval", "caption to picture: the right picture is among the first 5", one_decimal),
    Column("IR@10", "IR@10", "Retrieval", "caption to picture: the right picture is among the first 10", one_decimal),
    Column("R-mean", "R mean", "Retrieval", "mean of the six recalls", one_decimal),
    Column("BLEU-4", "B@4", "Captioning", "BLEU-4, x 100", one_decimal),
    Column("CIDEr", "CIDEr", "Captioning", "CIDEr-D, x 100", one_decimal),
    Column("ROUGE-L", "ROUGE-L", "Captioning", "ROUGE-L, x 100", one_decimal),
    Column("METEOR", "METEOR", "Captioning", "METEOR, x 100", one_decimal),
    Column("SPICE", "SPICE", "Captioning", "SPICE, x 100", one_decimal),
    Column("VQA", "VQA", "Questions", "answers that agree with the annotators, %", one_decimal),
    Column("parameters", "Parameters", "Cost", "weights, shared ones counted once", millions),
    Column(
        "macs", "MACs", "Cost", "multiply-accumulates of one picture and text, attention products left out", operations
    ),
    Column("latency_ms", "Latency", "Cost", "median time of a batch (batch_size in profile.json) here", milliseconds),
    Column("first_token_ms", "First token", "Cost", "median time until a batch of answers has begun", milliseconds),
    Column(
        "next_token_ms",
        "Next token",
        "Cost",
        "median time from each token of a batch of answers to the next",
        milliseconds,
    ),
    Column("peak_memory_mib", "Memory", "Cost", "weights, and the most bytes of tensors alive at once", mebibytes),
)
"""every quantity that the table can show of any model; one that no run has measured gets no column"""
WRITERS_MEANING = {
    "macs": "multiply-accumulates of picture and question up to the first token, attention products left out",
    "latency_ms": "median time of a batch of whole answers (batch_size and new_tokens in profile.json) here",
}
"""what two columns mean of models that write"""


@dataclass(frozen=True)
class Cell:
    """One number of the table."""

    text: str
    share: str | None
    """of the teacher's, for a student"""
    best: bool
    """whether no other student (of models that write: no other of its role) is as good"""


@dataclass(frozen=True)
class Row:
    """One model."""

    role: str
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """The whole table."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Names of neighbouring columns' groups and how many columns each spans."""
        return [(name, len(list(members))) for name, members in groupby(self.columns, key=lambda column: column.group)]


def columns_of(runs: Sequence[Run]) -> tuple[Column, ...]:
    """`COLUMNS` and, before what models cost, the figures of the benchmarks that models which write were tried on."""
    names = dict.fromkeys(name for run in runs if run.writer for name in run.writer.benchmarks)
    figures = [Column(name, name, "Benchmarks", f"figure of the benchmark {name}", one_decimal) for name in names]
    known = [
        replace(column, meaning=WRITERS_MEANING.get(column.key, column.meaning))
        if all(run.writer for run in runs)
        else column
        for column in COLUMNS
    ]
    quality, costs = ([column for column in known if column.is_cost == is_cost] for is_cost in (False, True))
    return (*quality, *figures, *costs)


def values(run: Run) -> Mapping[str, float]:
    """Every finite number of a model by column, quality and cost."""
    both = {**run.metrics, **run.costs}
    keys = (column.key for column in columns_of([run]))
    return {key: both[key] for key in keys if math.isfinite(both.get(key, math.nan))}


def shares(run: Run, teacher: Run) -> dict[str, float]:
    """What part of the teacher's number the run has, where both were measured and the teacher's is not shown as 0."""
    mine, theirs = values(run), values(teacher)
    shown = {column.key: column.show(theirs[column.key]) for column in columns_of([teacher]) if column.key in theirs}
    return {key: mine[key] / theirs[key] for key in mine if set("123456789") & set(shown.get(key, ""))}


def the_teacher(runs: Sequence[Run]) -> Run | None:
    """The first run that is a teacher; one that writes is nobody's beside models with pairs."""
    kin = [run for run in runs if not run.writer] or runs
    return next((run for run in kin if run.role == "teacher"), None)


def make_table(runs: Sequence[Run]) -> Table:
    """Lay the table out: one row for each run, one column for each quantity that any run has measured."""
    teacher = the_teacher(runs)
    columns = tuple(column for column in columns_of(runs) if any(column.key in values(run) for run in runs))
    rows = tuple(
        Row(run.role, run.name, tuple(_cell(run, column, teacher, _rivals(run, runs)) for column in columns))
        for run in runs
    )
    return Table(columns, rows)


def _rivals(run: Run, runs: Sequence[Run]) -> list[Run]:
    """Whom a model is compared with: a student with every student, a model that writes with those of its role."""
    if run.writer:
        return [other for other in runs if other.writer and other.role == run.role]
    return [other for other in runs if other.role != "teacher" and not other.writer]


def _cell(run: Run, column: Column, teacher: Run | None, rivals: Sequence[Run]) -> Cell:
    value = values(run).get(column.key)
    if value is None:
        return Cell(NONE, None, best=False)
    if run.role == "teacher":
        return Cell(column.show(value), None, best=False)
    share = shares(run, teacher).get(column.key) if teacher and not run.writer else None
    others = [values(other)[column.key] for other in rivals if other is not run and column.key in values(other)]
    better = (value < min(others) if column.is_cost else value > max(others)) if others else False
    return Cell(column.show(value), None if share is None else f"{share:.0%}", best=better)


def as_json(runs: Sequence[Run]) -> list[dict[str, object]]:
    """The table for programs: one object for each model; a cost that was not measured is null, a metric is absent."""
    teacher = the_teacher(runs)
    return [
        {
            "role": run.role,
            "name": run.name,
            "metrics": {
                column.key: values(run)[column.key]
                for column in columns_of([run])
                if not column.is_cost and column.key in values(run)
            },
            "parameters": _whole(values(run).get("parameters")),
            "macs": _whole(values(run).get("macs")),
            "latency_ms": values(run).get("latency_ms"),
            "peak_memory_mib": values(run).get("peak_memory_mib"),
            "share_of_teacher": None if teacher is None or run is teacher or run.writer else shares(run, teacher),
            **(_writers_json(run.writer) if run.writer else {}),
        }
        for run in runs
    ]


def _writers_json(writer: Writer) -> dict[str, object]:
    """What the table for programs holds of a model that writes alone."""
    return {"parameters_by_tower": {tower: round(count) for tower, count in writer.towers.items()}, **writer.costs}


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
