"""Charts as geometry: data in, positions in a small drawing out. The page's template turns them into SVG.

A drawing is `WIDTH` by `HEIGHT` units, whatever its width on screen; y grows downwards, as in SVG.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

WIDTH, HEIGHT = 300, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 294, 10, 166
"""the frame that data is drawn in; ticks and labels stand outside"""
MOST_POINTS = 200
"""points drawn of one line; a longer one is shown as means of equal slices"""

Point = tuple[float, float]


class Tick(NamedTuple):
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear axis between two data values and two drawing positions."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float, *, room: float = 0.0) -> Axis:
        """The axis that holds `values`, with `room` (a share of their range) to spare on each side."""
        seen = list(values)
        low, high = min(seen), max(seen)
        margin = (high - low) * room or (0.0 if high > low else abs(high) * 0.1 or 1.0)
        low, high = low - margin, high + margin
        return cls(low=low, high=high, start=start, end=end)

    @classmethod
    def across(cls, values: Iterable[float]) -> Axis:
        """A horizontal axis that just holds `values`."""
        return cls.around(values, LEFT, RIGHT)

    @classmethod
    def upwards(cls, values: Iterable[float], *, room: float = 0.05) -> Axis:
        """A vertical axis with some room above and below."""
        return cls.around(values, BOTTOM, TOP, room=room)

    def __call__(self, value: float) -> float:
        """The drawing position of a data value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 4) -> list[Tick]:
        """About `count` round values (1, 2 or 5 times a power of ten apart) that lie on the axis."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.7)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self(i * step), amount(i * step, step)) for i in range(first, last + 1)]


def amount(value: float, step: float = 0.0) -> str:
    """A short label: 1500 is 1.5k, 3.2e9 is 3.2G; as many decimals as `step` between labels needs."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.{_decimals(step / size)}f}{unit}" if step else f"{value / size:.3g}{unit}"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or 0 < step < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    return f"{value:.{_decimals(step)}f}" if step else f"{value:.4g}"


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else int(step % 1 > 0)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One drawn line (or band) and what hovering over it reads out."""

    label: str
    tone: str
    path: str
    xs: list[float]
    ys: list[float]
    texts: list[str]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One model in a trade-off panel."""

    label: str
    tone: str
    shape: Literal["circle", "square", "diamond"]
    x: float
    y: float
    text: str
    anchor: Literal["start", "end"]
    nudge: float
    """units the label stands below the middle of its mark"""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small chart."""

    title: str
    summary: str
    """what a reader who cannot see the drawing is told"""
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    kind: Literal["lines", "bands", "marks"]
    lines: list[Line]
    marks: list[Mark]
    rules: list[float]
    """positions of vertical rules: where one stage ends and the next begins"""
    level: float | None = None
    """position of the dashed horizontal rule: the teacher's score"""

    @property
    def hover(self) -> dict[str, object]:
        """What the page's script needs to read values out."""
        return {
            "lines": [{"label": n.label, "tone": n.tone, "xs": n.xs, "ys": n.ys, "texts": n.texts} for n in self.lines]
        }


def thin(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` points: means of equal slices, so that noise shrinks and no spike is picked by chance."""
    if len(points) <= MOST_POINTS:
        return list(points)
    edges = [round(i * len(points) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    slices = (points[start:end] for start, end in pairwise(edges))
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in slices]


def polyline(points: Iterable[Point]) -> str:
    """SVG path data through `points`."""
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def lines_of(
    series: Sequence[tuple[str, str, Sequence[Point]]], x_axis: Axis, y_axis: Axis, text: Callable[[float, float], str]
) -> list[Line]:
    """Each series, label, tone and points, as a line whose points say `text(x, y)` when they are pointed at."""
    return [
        Line(
            label=label,
            tone=tone,
            path=polyline((x_axis(x), y_axis(y)) for x, y in points),
            xs=[x_axis(x) for x, _ in points],
            ys=[y_axis(y) for _, y in points],
            texts=[text(x, y) for x, y in points],
        )
        for label, tone, points in series
    ]


def line_panel(title: str, series: Sequence[tuple[str, str, Sequence[Point]]], *, rules: Sequence[float] = ()) -> Panel:
    """Lines over steps. A series is (label, tone, points); values that are not finite are left out.

    Args:
        rules: steps at which a new stage begins.

    Raises:
        ValueError: no series has a finite point.
    """
    kept = [(label, tone, thin([p for p in points if math.isfinite(p[1])])) for label, tone, points in series]
    kept = [(label, tone, points) for label, tone, points in kept if points]
    if not kept:
        raise ValueError(f"chart {title!r}: no series has a finite value")
    x_axis = Axis.across(x for _, _, points in kept for x, _ in points)
    y_axis = Axis.upwards(y for _, _, points in kept for _, y in points)
    lines = lines_of(kept, x_axis, y_axis, lambda x, y: f"{amount(y)} at step {x:,.0f}")
    ends = "; ".join(f"{label} from {amount(points[0][1])} to {amount(points[-1][1])}" for label, _, points in kept)
    return Panel(
        title=title,
        summary=f"{title} over training steps: {ends}.",
        x_label="step",
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        kind="lines",
        lines=lines,
        marks=[],
        rules=[x_axis(step) for step in rules if x_axis.low < step < x_axis.high],
    )


def band_panel(title: str, steps: Sequence[float], shares: Sequence[tuple[str, str, Sequence[float]]]) -> Panel:
    """Shares that add up to 1, stacked. A share is (label, tone, one value for each step).

    Raises:
        ValueError: no steps, or a share that has another length.
    """
    if not steps or any(len(values) != len(steps) for _, _, values in shares):
        raise ValueError(f"chart {title!r}: every share needs one value for each of {len(steps)} (at least 1) steps")
    x_axis = Axis.across(steps)
    y_axis = Axis(low=0.0, high=1.0, start=BOTTOM, end=TOP)
    totals = [sum(values[i] for _, _, values in shares) or 1.0 for i in range(len(steps))]
    floor = [0.0] * len(steps)
    lines: list[Line] = []
    for label, tone, values in shares:
        ceiling = [low + value / total for low, value, total in zip(floor, values, totals, strict=True)]
        above = [(x_axis(x), y_axis(y)) for x, y in zip(steps, ceiling, strict=True)]
        below = [(x_axis(x), y_axis(y)) for x, y in zip(steps, floor, strict=True)]
        lines.append(
            Line(
                label=label,
                tone=tone,
                path=polyline([*above, *reversed(below)]) + "Z",
                xs=[x for x, _ in above],
                ys=[(up + down) / 2 for (_, up), (_, down) in zip(above, below, strict=True)],
                texts=[
                    f"{value / total:.0%} at step {x:,.0f}"
                    for x, value, total in zip(steps, values, totals, strict=True)
                ],
            )
        )
        floor = ceiling
    means = ", ".join(f"{label} {sum(values) / sum(totals):.0%}" for label, _, values in shares)
    return Panel(
        title=title,
        summary=f"Share of each loss term in the gradient over training steps, {title}. Mean: {means}.",
        x_label="step",
        x_ticks=x_axis.ticks(),
        y_ticks=[Tick(y_axis(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        kind="bands",
        lines=lines,
        marks=[],
        rules=[],
    )


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One model in a trade-off picture, in data units."""

    label: str
    tone: str
    x: float
    y: float
    text: str


SHAPES: dict[str, Literal["circle", "square", "diamond"]] = {"teacher": "square", "plain": "diamond"}
"""shape of a mark by tone, so that colour is never the only sign; every other tone is a circle"""


def mark_panel(title: str, x_label: str, spots: Sequence[Spot], *, level: float | None = None) -> Panel:
    """Quality (upwards) against cost (to the right), one mark for each model: one panel of DLIP's Figure 1.

    Args:
        level: the teacher's score, drawn as a dashed rule.

    Raises:
        ValueError: no spots.
    """
    if not spots:
        raise ValueError(f"chart {title!r} has no models to show")
    x_axis = Axis(low=0.0, high=max(spot.x for spot in spots) * 1.08 or 1.0, start=LEFT, end=RIGHT)
    y_axis = Axis.upwards((spot.y for spot in spots), room=0.18)
    ranked = sorted(spots, key=lambda spot: spot.y)
    marks = [
        Mark(
            label=spot.label,
            tone=spot.tone,
            shape=SHAPES.get(spot.tone, "circle"),
            x=x_axis(spot.x),
            y=y_axis(spot.y),
            text=f"{spot.label}: {spot.text}",
            anchor="end" if x_axis(spot.x) > (LEFT + RIGHT) / 2 else "start",
            nudge=_nudge(spot, ranked, x_axis, y_axis),
        )
        for spot in spots
    ]
    return Panel(
        title=title,
        summary=f"{title} against {x_label}. " + "; ".join(f"{spot.label}: {spot.text}" for spot in spots) + ".",
        x_label=x_label,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        kind="marks",
        lines=[],
        marks=marks,
        rules=[],
        level=None if level is None else y_axis(level),
    )


def _nudge(spot: Spot, ranked: Sequence[Spot], x_axis: Axis, y_axis: Axis) -> float:
    """How far a label moves so that it does not lie on that of a close neighbour: the lower of two goes down."""
    near = [o for o in ranked if abs(x_axis(o.x) - x_axis(spot.x)) < 90 and abs(y_axis(o.y) - y_axis(spot.y)) < 14]
    return 4.0 + 13.0 * (len(near) - 1 - 2 * near.index(spot)) / 2
