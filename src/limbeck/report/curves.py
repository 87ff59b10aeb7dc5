"""The charts of a report: how training went, and quality against cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limbeck.report.charts import Panel, Point, Spot, band_panel, line_panel, mark_panel
from limbeck.report.headline import HEADLINE
from limbeck.report.runs import LogRow, Run
from limbeck.report.table import COLUMNS, the_teacher, values

ROLES = ("teacher", "plain", "distilled")
"""roles with a colour of their own; others take `other-1`, `other-2`... in turn"""
OTHER_TONES = 4
TERM_TONES = 10


def tone_of(runs: Sequence[Run]) -> dict[str, str]:
    """The colour name of every role."""
    others = [role for role in dict.fromkeys(run.role for run in runs) if role not in ROLES]
    return {role: role for role in ROLES} | {role: f"other-{i % OTHER_TONES + 1}" for i, role in enumerate(others)}


@dataclass(frozen=True)
class TradeOff:
    """Quality against one cost: one panel a metric."""

    key: str
    label: str
    panels: tuple[Panel, ...]


def trade_offs(runs: Sequence[Run]) -> list[TradeOff]:
    """DLIP's Figure 1 for each cost that was measured; empty where no run has both a quality and a cost."""
    tones, teacher = tone_of(runs), the_teacher(runs)
    metrics = [column for column in COLUMNS if column.key in HEADLINE]
    if not any(metric.key in values(run) for metric in metrics for run in runs):
        metrics = [column for column in COLUMNS if not column.is_cost]
    found: list[TradeOff] = []
    for cost in (column for column in COLUMNS if column.key in ("parameters", "macs", "latency_ms")):
        panels: list[Panel] = []
        for metric in metrics:
            spots = [
                Spot(
                    label=run.name,
                    tone=tones[run.role],
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


def loss_panels(runs: Sequence[Run]) -> list[Panel]:
    """Loss, learning rate and speed, every run in one panel."""
    wanted: list[tuple[str, Callable[[LogRow], float | None]]] = [
        ("Loss", lambda row: row.loss),
        ("Learning rate", lambda row: row.learning_rate),
        ("Pictures per second", lambda row: row.samples_per_second),
    ]
    return [panel for title, read in wanted if (panel := _panel(title, runs, read)) is not None]


def term_panels(runs: Sequence[Run]) -> list[Panel]:
    """One panel for each loss term, unweighted."""
    terms = dict.fromkeys(term for run in runs for row in run.log for term in row.terms)
    return [panel for term in terms if (panel := _panel(term, runs, lambda row, t=term: row.terms.get(t))) is not None]


def gradient_panels(runs: Sequence[Run]) -> list[Panel]:
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


def _panel(title: str, runs: Sequence[Run], read: Callable[[LogRow], float | None]) -> Panel | None:
    tones = tone_of(runs)
    series: list[tuple[str, str, list[Point]]] = []
    rules: list[int] = []
    for run in runs:
        placed, begins = timeline(run.log)
        points = [(float(step), value) for step, row in placed if (value := read(row)) is not None]
        if points:
            series.append((run.name, tones[run.role], points))
            rules = max(rules, begins, key=len)
    return line_panel(title, series, rules=rules) if series else None
