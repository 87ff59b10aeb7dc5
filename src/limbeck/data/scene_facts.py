"""The facts of a scene, and which combinations each split may show.

Splits hold out combinations: two kinds of things that stand together in a test scene never do in a train or val
scene, and a kind of thing never stands there on the background that it has in test. The kinds of things form a grid of
columns and rows for that: two in one column may meet in test only, two in one row in val only, all others in train
only. In the same way a column has its own background in test, and a row in val.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from limbeck.data.builtin import Split
from limbeck.data.scene_words import Thing, things

T = TypeVar("T")

COLUMNS = 12
BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (176, 176, 176),
    "yellow": (250, 236, 130),
    "green": (160, 222, 160),
    "blue": (150, 196, 250),
    "purple": (205, 170, 240),
    "pink": (250, 185, 205),
    "brown": (196, 160, 125),
}
"""Background colours by name."""
SIZES = {"big": 0.46, "small": 0.3}
"""Longer side of a thing, as a share of the canvas."""
PLACES = {
    "middle": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
"""Centre (x, y) of a place, from the top left, as a share of the canvas."""
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
_LAYOUTS = {
    1: [("middle",), ("left",), ("right",), ("top",), ("bottom",)],
    2: [("left", "right"), ("top", "bottom")],
    3: [tuple(place for place in _CORNERS if place != gap) for gap in _CORNERS],
    4: [_CORNERS],
}
_COUNTS = (1, 2, 2, 3, 3, 4, 4)
"""How many things, as often as written."""
_DOUBLE = 0.2
"""How often a further thing is of a kind that is there already."""
_JITTER = 0.02
"""A thing stands off its place's centre by up to this share of the canvas."""
_TINT = 8
"""A background is off its colour by up to this much in each channel."""


@dataclass(frozen=True)
class Placed:
    """One thing in a scene."""

    thing: Thing
    size: str
    """a key of SIZES"""
    place: str
    """a key of PLACES"""
    offset: tuple[float, float]
    """from the place's centre, as a share of the canvas"""


@dataclass(frozen=True)
class Scene:
    """Everything about a picture."""

    background: str
    """a key of BACKGROUNDS"""
    tint: tuple[int, int, int]
    """added to the background's colour"""
    placed: tuple[Placed, ...]


def pair_split(first: int, second: int) -> Split:
    """The split in which two kinds of things (indices into `things()`) may stand together."""
    if first % COLUMNS == second % COLUMNS:
        return "test"
    return "val" if first // COLUMNS == second // COLUMNS else "train"


def background_split(kind: int, background: int) -> Split:
    """The split in which a kind of thing (index into `things()`) may stand on a background (index)."""
    if (kind % COLUMNS + background) % len(BACKGROUNDS) == 0:
        return "test"
    return "val" if (kind // COLUMNS + background) % len(BACKGROUNDS) == 0 else "train"


def make_scene(rng: random.Random, split: Split, vocabulary: int, objects: int) -> Scene:
    """Draw a scene of a split from the first `vocabulary` kinds, with 1 to `objects` things."""
    kind, background = pick(rng, _starts(split, vocabulary))
    kinds = [kind]
    candidates = _companions(split, vocabulary, kind, background)
    count = pick(rng, _COUNTS[: 2 * objects - 1])
    for _ in range(count - 1):
        if not candidates or rng.random() < _DOUBLE:
            kinds.append(pick(rng, kinds))
            continue
        kind = pick(rng, candidates)
        kinds.append(kind)
        candidates = [other for other in candidates if other != kind and pair_split(kind, other) == split]
    places = list(pick(rng, _LAYOUTS[count]))
    placed = []
    for kind in kinds:
        offset = (_JITTER * (2 * rng.random() - 1), _JITTER * (2 * rng.random() - 1))
        place = places.pop(int(rng.random() * len(places)))
        placed.append(Placed(thing=things()[kind], size=pick(rng, tuple(SIZES)), place=place, offset=offset))
    red, green, blue = (int(_TINT * (2 * rng.random() - 1)) for _ in range(3))
    return Scene(background=tuple(BACKGROUNDS)[background], tint=(red, green, blue), placed=tuple(placed))


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One item. Uses only `random()`, whose values no Python version changes."""
    return items[int(rng.random() * len(items))]


@cache
def _starts(split: Split, vocabulary: int) -> tuple[tuple[int, int], ...]:
    """Every (kind, background) of a split."""
    return tuple(
        (kind, background)
        for kind in range(vocabulary)
        for background in range(len(BACKGROUNDS))
        if background_split(kind, background) == split
    )


@cache
def _companions(split: Split, vocabulary: int, kind: int, background: int) -> list[int]:
    """The kinds that may stand beside `kind` on `background`."""
    return [
        other
        for other in range(vocabulary)
        if other != kind and pair_split(kind, other) == split and background_split(other, background) == split
    ]
