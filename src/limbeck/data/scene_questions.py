"""Everything that can be asked about a scene, each question in several phrasings, all answers exact.

The first phrasing of every kind is that of `scene_texts.questions`. The others say the same with few words in common,
so that two questions of one kind about one picture count as different ones by ROUGE-L.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from limbeck.data.scene_facts import BACKGROUNDS, PLACES, SIZES, Placed, Scene
from limbeck.data.scene_texts import INVERSE, KINDS, holds, where
from limbeck.data.scene_words import Thing, plural, things

LIST = "list"
"""The kind of question that wants everything in the picture, in a sentence."""

ROLE_KINDS = (*KINDS, LIST)
"""Every kind of question that the roles are taught."""

PHRASINGS: dict[str, tuple[str, ...]] = {
    "what": (
        "what is {where}?",
        "name the thing {where}.",
        "which object do you see {where}?",
        "tell me the item standing {where}.",
    ),
    "how many": (
        "how many {what} are there?",
        "count all the {what} in it.",
        "give the number of {what} in this picture.",
        "what amount of {what} do you see?",
    ),
    "colour": (
        "what colour is the background?",
        "which colour is behind the things?",
        "name the tint of this picture.",
        "in what shade was the canvas painted?",
        "tell me how the ground looks.",
    ),
    "group": (
        "what kind of thing is {where}?",
        "to which group belongs the object {where}?",
        "name the category of the item {where}.",
        "how would you class that {where}?",
    ),
    "where": (
        "where is the {what}?",
        "in which place do you find the {what}?",
        "give the position of the {what}.",
        "the {what} stands at what spot?",
    ),
    "relation": (
        "what is {relation} the {what}?",
        "name the neighbour {relation} the {what}.",
        "which object do you see {relation} the {what}?",
        "tell me the item standing {relation} the {what}.",
    ),
    "yes/no relation": (
        "is the {what} {relation} the {other}?",
        "does one find the {what} {relation} the {other}?",
        "yes or no: the {what} stands {relation} the {other}.",
    ),
    "yes/no background": (
        "is the background {colour}?",
        "do all things stand on {colour}?",
        "yes or no: this canvas was painted {colour}.",
    ),
    "yes/no size": (
        "is the {what} {size}?",
        "would you call the {what} {size}?",
        "yes or no: we see a {size} {what}.",
    ),
    "yes/no there": (
        "is there {a}?",
        "can you see {a} in it?",
        "yes or no: this picture shows {a}.",
    ),
    LIST: (
        "what is in the picture?",
        "list everything with its place.",
        "describe this picture to me.",
        "which things stand where?",
    ),
}
"""The phrasings of every kind of question; those of yes/no by what is claimed."""


@dataclass(frozen=True)
class Asked:
    """A question about a scene."""

    kind: str
    """of ROLE_KINDS"""
    about: tuple[str, ...]
    """what is asked, however it is phrased"""
    phrasing: int
    text: str
    answer: str


def all_questions(scene: Scene, vocabulary: int) -> tuple[Asked, ...]:
    """Every question in every phrasing; whether things are there is asked about all of the first `vocabulary` kinds."""
    return tuple(
        Asked(
            kind="yes/no" if sort.startswith("yes/no") else sort,
            about=(sort, *words.values()),
            phrasing=number,
            text=phrasing.format_map(words),
            answer=answer,
        )
        for sort, words, answer in _facts(scene, vocabulary)
        for number, phrasing in enumerate(PHRASINGS[sort])
    )


def listed(scene: Scene) -> str:
    """Everything with its place, from the top left to the bottom right."""
    placed = sorted(scene.placed, key=lambda each: PLACES[each.place][::-1])
    return ", ".join(f"{each.thing.a} {where(each.place)}" for each in placed)


def _facts(scene: Scene, vocabulary: int) -> Iterator[tuple[str, dict[str, str], str]]:
    """(kind of PHRASINGS, the words of its phrasings, answer) of everything that can be asked."""
    kinds = Counter(placed.thing for placed in scene.placed)
    singles = [placed for placed in scene.placed if kinds[placed.thing] == 1]
    for placed in scene.placed:
        yield "what", {"where": where(placed.place)}, placed.thing.name
        yield "group", {"where": where(placed.place)}, placed.thing.group
    for thing, number in kinds.items():
        yield "how many", {"what": plural(thing.name)}, str(number)
    for group, number in Counter(placed.thing.group for placed in scene.placed).items():
        yield "how many", {"what": plural(group)}, str(number)
    yield "how many", {"what": "things"}, str(len(scene.placed))
    yield "colour", {}, scene.background
    for placed in singles:
        yield "where", {"what": placed.thing.name}, placed.place
        yield from _neighbours(scene, placed)
    yield from _claims(scene, singles, set(kinds), vocabulary)
    yield LIST, {}, listed(scene)


def _neighbours(scene: Scene, placed: Placed) -> Iterator[tuple[str, dict[str, str], str]]:
    """What stands in a relation to a thing, where exactly one thing does."""
    for relation in INVERSE:
        found = [other for other in scene.placed if holds(other, relation, placed)]
        if len(found) == 1:
            yield "relation", {"relation": relation, "what": placed.thing.name}, found[0].thing.name


def _claims(
    scene: Scene, singles: list[Placed], shown: set[Thing], vocabulary: int
) -> Iterator[tuple[str, dict[str, str], str]]:
    """Statements, true and false."""
    for first in singles:
        for second in singles:
            for relation, inverse in INVERSE.items():
                true = holds(first, relation, second)
                if true or holds(first, inverse, second):
                    words = {"what": first.thing.name, "relation": relation, "other": second.thing.name}
                    yield "yes/no relation", words, _yes(true)
        for size in SIZES:
            yield "yes/no size", {"what": first.thing.name, "size": size}, _yes(size == first.size)
    for colour in BACKGROUNDS:
        yield "yes/no background", {"colour": colour}, _yes(colour == scene.background)
    for thing in things()[:vocabulary]:
        yield "yes/no there", {"a": thing.a}, _yes(thing in shown)


def _yes(true: bool) -> str:
    return "yes" if true else "no"
