"""The charts of a report: how training went, and quality against cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

from limbeck.report.charts import Panel, Point, Spot, band_panel, line_panel, mark_panel
from limbeck.report.headline import HEADLINE
from limbeck.report.runs import LogRow, Run
from limbeck.report.table import columns_of, the_teacher, values

ROLES = ("teacher", "plain", "distilled")
"""roles with a colour of their own; others take `other-1`, `other-2`... in turn"""
OTHER_TONES = 4
WRITER_TONES = 8
TERM_TONES = 10


class Logged(Protocol):
    """Something that was trained."""

    @property
    def name(self) -> str: ...
    @property
    def log(self) -> Sequence[LogRow]: ...


def tone_of(runs: Sequence[Run]) -> dict[str, str]:
    """The colour name of every model: that of its role, or of models that write and do not teach one each in turn."""
    others = [role for role in dict.fromkeys(run.role for run in runs if not run.writer) if role not in ROLES]
    roles = {role: role for role in ROLES} | {role: f"other-{i % OTHER_TONES + 1}" for i, role in enumerate(others)}
    turns = cycle(range(1, WRITER_TONES + 1))
    in_turn = {run.name for run in runs if run.writer and run.role != "teacher"}
    return {run.name: f"other-{next(turns)}" if run.name in in_turn else roles[run.role] for run in runs}


@dataclass(frozen=True)
class TradeOff:
    """Quality against one cost: one panel a metric."""

    key: str
    label: str
    panels: tuple[Panel, ...]


def trade_offs(runs: Sequence[Run]) -> list[TradeOff]:
    """DLIP's Figure 1 for each cost that was measured; empty where no run has both a quality and a cost."""
    tones, teacher = tone_of(runs), the_teacher(runs)
    columns = columns_of(runs)
    metrics = [column for column in columns if column.key in HEADLINE or column.group == "Benchmarks"]
    if not any(metric.key in values(run) for metric in metrics for run in runs):
        metrics = [column for column in columns if not column.is_cost]
    found: list[TradeOff] = []
    for cost in (column for column in columns if column.key in ("parameters", "macs", "latency_ms")):
        panels: list[Panel] = []
        for metric in metrics:
            spots = [
                Spot(
                    label=run.name,
                    tone=tones[run.name],
                    x=values(run)[cost.key],
                    y=values(run)[metric.key],
                    text=f"{metric.label} {metric.show(values(run)[metric.key])}, {cost.show(values(run)[cost.key])}",
                )
                for run in runs
                if {cost.key, metric.key} <= values(run).keys()
            ]
            level = values(teacher).get(metric.key) if teacher else None
            if spots:
                panels.append(mark_panel(metric.label, cost.label, spots, level=level))
        if panels:
            found.append(TradeOff(cost.key, cost.label, tuple(panels)))
    return found


def timeline(log: Sequence[LogRow]) -> tuple[list[tuple[int, LogRow]], list[int]]:
    """The rows with their step counted from the start of the run, and the steps at which a new stage begins."""
    placed: list[tuple[int, LogRow]] = []
    begins: list[int] = []
    before, end, stage = 0, 0, None
    for row in log:
        if row.stage != stage:
            if stage is not None:
                begins.append(end)
            before, stage = end, row.stage
        end = before + row.step
        placed.append((end, row))
    return placed, begins


def loss_panels(runs: Sequence[Logged], tones: Mapping[str, str]) -> list[Panel]:
    """Loss, learning rate and speed, every run in one panel."""
    loss = _panel("Loss", runs, tones, lambda row: row.loss)
    return [*([loss] if loss else []), *pace_panels(runs, tones)]


def pace_panels(runs: Sequence[Logged], tones: Mapping[str, str]) -> list[Panel]:
    """Learning rate and speed, every run in one panel."""
    wanted: list[tuple[str, Callable[[LogRow], float | None]]] = [
        ("Learning rate", lambda row: row.learning_rate),
        ("Pictures per second", lambda row: row.samples_per_second),
    ]
    return [panel for title, read in wanted if (panel := _panel(title, runs, tones, read)) is not None]


def term_panels(runs: Sequence[Logged], tones: Mapping[str, str]) -> list[Panel]:
    """One panel for each loss term, unweighted."""
    terms = dict.fromkeys(term for run in runs for row in run.log for term in row.terms)
    found = (_panel(term, runs, tones, lambda row, term=term: row.terms.get(term)) for term in terms)
    return [panel for panel in found if panel is not None]


def gradient_panels(runs: Sequence[Logged]) -> list[Panel]:
    """One panel for each run that logged how its gradient is shared between the terms."""
    terms = list(dict.fromkeys(term for run in runs for row in run.log for term in row.gradient_share))
    tones = {term: f"term-{i % TERM_TONES + 1}" for i, term in enumerate(terms)}
    panels: list[Panel] = []
    for run in runs:
        rows = [(step, row.gradient_share) for step, row in timeline(run.log)[0] if row.gradient_share]
        own = [term for term in terms if any(term in share for _, share in rows)]
        if len(rows) > 1:
            shares = [(term, tones[term], [share.get(term, 0.0) for _, share in rows]) for term in own]
            panels.append(band_panel(run.name, [float(step) for step, _ in rows], shares))
    return panels


def _panel(
    title: str, runs: Sequence[Logged], tones: Mapping[str, str], read: Callable[[LogRow], float | None]
) -> Panel | None:
    series: list[tuple[str, str, list[Point]]] = []
    rules: list[int] = []
    for run in runs:
        placed, begins = timeline(run.log)
        points = [(float(step), value) for step, row in placed if (value := read(row)) is not None]
        if points:
            series.append((run.name, tones[run.name], points))
            rules = max(rules, begins, key=len)
    return line_panel(title, series, rules=rules) if series else None
