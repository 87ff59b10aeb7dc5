"""The charts of a competition: values after each tuning or round, and how its instructions spread over difficulty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limbeck.report.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    SHAPES,
    TOP,
    Axis,
    Line,
    Mark,
    Panel,
    Point,
    Tick,
    amount,
    lines_of,
    polyline,
)

MOST_TICKS = 8
GAP = 0.6
"""units left free on each side of a bar"""


@dataclass(frozen=True)
class Bin:
    """How many values lie from `low` up to `high`."""

    low: float
    high: float
    count: int


def round_panel(
    title: str,
    unit: str,
    series: Sequence[tuple[str, str, Sequence[Point]]],
    *,
    level: tuple[str, float] | None = None,
    show: Callable[[float], str] = amount,
) -> Panel:
    """Lines with a mark at every value, over whole numbers. A series is (label, tone, points in order).

    Args:
        unit: what is counted: `tuning` or `round`.
        level: name and value of a dashed rule across.

    Raises:
        ValueError: a series has no point, or there is none.
    """
    if not series or not all(points for _, _, points in series):
        raise ValueError(f"chart {title!r}: every series needs a point")
    numbers = sorted({int(x) for _, _, points in series for x, _ in points})
    first, last = numbers[0], numbers[-1]
    x_axis = Axis(low=first - 0.25, high=last + 0.25, start=LEFT, end=RIGHT)
    held = [y for _, _, points in series for _, y in points] + ([level[1]] if level else [])
    y_axis = Axis.upwards(held, room=0.12)
    told = [f"{label} " + ", ".join(show(y) for _, y in points) for label, _, points in series]
    told += [f"{level[0]} {show(level[1])}"] if level else []
    lines = lines_of(series, x_axis, y_axis, lambda x, y: f"{show(y)}, {unit} {x:.0f}")
    marks = [
        Mark(
            label="",
            tone=line.tone,
            shape=SHAPES.get(line.tone, "circle"),
            x=x,
            y=y,
            text=f"{title}, {line.label}: {text}",
            anchor="start",
            nudge=0.0,
        )
        for line in lines
        for x, y, text in zip(line.xs, line.ys, line.texts, strict=True)
    ]
    return Panel(
        title=title,
        summary=f"{title} by {unit}, from {first} to {last}: {'; '.join(told)}.",
        x_label=unit,
        x_ticks=[Tick(x_axis(n), str(n)) for n in range(first, last + 1, -(-(last - first + 1) // MOST_TICKS))],
        y_ticks=y_axis.ticks(),
        kind="lines",
        lines=lines,
        marks=marks,
        rules=[],
        level=None if level is None else y_axis(level[1]),
    )


def histogram_panels(histograms: Sequence[tuple[str, Sequence[Bin], float | None]], tone: str) -> list[Panel]:
    """Shares of each histogram's values, all in one frame. A histogram is (title, bins, where a dotted upright stands).

    Raises:
        ValueError: a histogram counts nothing.
    """
    for title, bins, _ in histograms:
        if not sum(each.count for each in bins):
            raise ValueError(f"chart {title!r}: there is nothing in its bins")
    if not histograms:
        return []
    edges = [edge for _, bins, _ in histograms for each in bins for edge in (each.low, each.high)]
    x_axis = Axis.across([min(0.0, *edges), max(1.0, *edges)])
    highest = max(each.count / sum(other.count for other in bins) for _, bins, _ in histograms for each in bins)
    y_axis = Axis(low=0.0, high=highest * 1.05, start=BOTTOM, end=TOP)
    return [_histogram(title, bins, rule, tone, x_axis, y_axis) for title, bins, rule in histograms]


def _histogram(title: str, bins: Sequence[Bin], rule: float | None, tone: str, x_axis: Axis, y_axis: Axis) -> Panel:
    total = sum(each.count for each in bins)
    texts = [f"{each.count:,} from {each.low:g} to {each.high:g} ({each.count / total:.0%})" for each in bins]
    return Panel(
        title=title,
        summary=f"Difficulty of {total:,} instructions, {title}: "
        + "; ".join(text for text, each in zip(texts, bins, strict=True) if each.count)
        + (f". Tau is {rule:g}." if rule is not None else "."),
        x_label="difficulty",
        x_ticks=x_axis.ticks(),
        y_ticks=[Tick(tick.at, f"{tick.label}%") for tick in _percent(y_axis).ticks()],
        kind="bands",
        lines=[
            Line(
                label="instructions",
                tone=tone,
                path="".join(_bar(x_axis(each.low), x_axis(each.high), y_axis(each.count / total)) for each in bins),
                xs=[x_axis((each.low + each.high) / 2) for each in bins],
                ys=[y_axis(each.count / total) for each in bins],
                texts=texts,
            )
        ],
        marks=[],
        rules=[x_axis(rule)] if rule is not None else [],
    )


def _percent(axis: Axis) -> Axis:
    return Axis(low=axis.low * 100, high=axis.high * 100, start=axis.start, end=axis.end)


def _bar(left: float, right: float, top: float) -> str:
    corners = [(left + GAP, BOTTOM), (left + GAP, top), (right - GAP, top), (right - GAP, BOTTOM)]
    return polyline([(round(x, 1), y) for x, y in corners]) + "Z"
