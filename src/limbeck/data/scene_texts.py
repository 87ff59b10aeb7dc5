"""What is said and asked about a scene: every caption true, every answer exact, by construction from the facts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from limbeck.data.builtin import with_article
from limbeck.data.examples import Question
from limbeck.data.scene_facts import BACKGROUNDS, PLACES, SIZES, Placed, Scene, pick
from limbeck.data.scene_words import NUMBERS, plural, things

Asked = tuple[str, str] | None
"""A question and its answer, or None where the scene gives no such question."""

RELATIONS = {"to the left of": "to the right of", "above": "below"}
"""Relations, each with its inverse. One holds where the centres' places differ by a quarter of the canvas or more."""
INVERSE = RELATIONS | {inverse: relation for relation, inverse in RELATIONS.items()}


def where(place: str) -> str:
    """A place as a phrase."""
    if place in ("left", "right"):
        return f"on the {place}"
    return "in the middle" if place == "middle" else f"at the {place}"


def holds(first: Placed, relation: str, second: Placed) -> bool:
    """Whether `first` stands in a relation (a key of INVERSE) to `second`."""
    (x1, y1), (x2, y2) = PLACES[first.place], PLACES[second.place]
    by_relation = {"to the left of": x2 - x1, "to the right of": x1 - x2, "above": y2 - y1, "below": y1 - y2}
    return by_relation[relation] >= 0.25


def captions(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Five captions: on places, background, relation, sizes, and counts or groups."""
    return (
        _on_places(scene, rng),
        _on_background(scene, rng),
        _on_relation(scene, rng),
        _on_sizes(scene, rng),
        _on_counts(scene, rng),
    )


def questions(scene: Scene, rng: random.Random, name: str, number: int, vocabulary: int) -> tuple[Question, ...]:
    """Up to `number` different questions, of as many kinds as possible."""
    kinds = list(_KINDS)
    asked: dict[str, Question] = {}
    while kinds and len(asked) < number:
        kind = kinds.pop(int(rng.random() * len(kinds)))
        result = _KINDS[kind](scene, rng, vocabulary)
        if result is not None:
            text, answer = result
            asked[text] = Question(id=f"{name}/{len(asked)}", text=text, answers=(answer,), kind=kind)
    return tuple(asked.values())


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _counted(scene: Scene) -> str:
    """ "a dog and two apples" """
    kinds = Counter(placed.thing for placed in scene.placed)
    return _listed([thing.count(number) for thing, number in kinds.items()])


def _singles(scene: Scene) -> list[Placed]:
    """The things that are the only one of their kind."""
    kinds = Counter(placed.thing for placed in scene.placed)
    return [placed for placed in scene.placed if kinds[placed.thing] == 1]


def _related(scene: Scene) -> list[tuple[Placed, str, Placed]]:
    """Every (first, relation, second) that holds between two things without a double."""
    singles = _singles(scene)
    return [
        (first, relation, second)
        for first in singles
        for second in singles
        for relation in INVERSE
        if holds(first, relation, second)
    ]


def _on_places(scene: Scene, rng: random.Random) -> str:
    parts = [f"{placed.thing.a} {where(placed.place)}" for placed in scene.placed]
    return pick(rng, ("{}", "there is {}", "a picture with {}")).format(_listed(parts))


def _on_background(scene: Scene, rng: random.Random) -> str:
    templates = ("{things} on {a_colour} background", "{a_colour} picture of {things}", "{things} in front of {colour}")
    return pick(rng, templates).format(
        things=_counted(scene), colour=scene.background, a_colour=with_article(scene.background)
    )


def _on_relation(scene: Scene, rng: random.Random) -> str:
    related = _related(scene)
    if not related:
        placed = pick(rng, scene.placed)
        return f"{placed.thing.a} {where(placed.place)} of {with_article(scene.background)} picture"
    first, relation, second = pick(rng, related)
    return pick(rng, ("{} {} {}", "{} is {} {}", "we see {} {} {}")).format(first.thing.a, relation, second.thing.a)


def _on_sizes(scene: Scene, rng: random.Random) -> str:
    sized = Counter((placed.size, placed.thing) for placed in scene.placed)
    parts = [
        f"a {size} {thing.name}" if number == 1 else f"{NUMBERS[number]} {size} {plural(thing.name)}"
        for (size, thing), number in sized.items()
    ]
    return pick(rng, ("{}", "a drawing of {}", "here is {}")).format(_listed(parts))


def _on_counts(scene: Scene, rng: random.Random) -> str:
    total = len(scene.placed)
    things_word = "one thing" if total == 1 else f"{NUMBERS[total]} things"
    groups = Counter(placed.thing.group for placed in scene.placed)
    grouped = [with_article(name) if n == 1 else f"{NUMBERS[n]} {plural(name)}" for name, n in groups.items()]
    templates = ("{groups}, namely {things}", "{total}, {things}", "a picture of {total}, {things}")
    return pick(rng, templates).format(groups=_listed(grouped), things=_counted(scene), total=things_word)


def _what(scene: Scene, rng: random.Random, vocabulary: int) -> Asked:
    placed = pick(rng, scene.placed)
    return f"what is {where(placed.place)}?", placed.thing.name


def _how_many(scene: Scene, rng: random.Random, vocabulary: int) -> Asked:
    placed = pick(rng, scene.placed)
    form = rng.random()
    if form < 0.4:
        number = sum(other.thing == placed.thing for other in scene.placed)
        return f"how many {plural(placed.thing.name)} are there?", str(number)
    if form < 0.7:
        number = sum(other.thing.group == placed.thing.group for other in scene.placed)
        return f"how many {plural(placed.thing.group)} are there?", str(number)
    return "how many things are there?", str(len(scene.placed))


def _colour(scene: Scene, rng: random.Random, vocabulary: int) -> Asked:
    return pick(rng, ("what colour is the background?", "which colour is behind the things?")), scene.background


def _group(scene: Scene, rng: random.Random, vocabulary: int) -> Asked:
    placed = pick(rng, scene.placed)
    return f"what kind of thing is {where(placed.place)}?", placed.thing.group


def _where(scene: Scene, rng: random.Random, vocabulary: int) -> Asked:
    singles = _singles(scene)
    if not singles:
        return None
    placed = pick(rng, singles)
    return f"where is the {placed.thing.name}?", placed.place


def _relation(scene: Scene, rng: random.Random, vocabulary: int) -> Asked:
    """What stands in a relation to a thing, where exactly one thing does."""
    asked = [
        (f"what is {relation} the {second.thing.name}?", answers[0].thing.name)
        for second in _singles(scene)
        for relation in INVERSE
        if len(answers := [first for first in scene.placed if holds(first, relation, second)]) == 1
    ]
    return pick(rng, asked) if asked else None


def _yes_no(scene: Scene, rng: random.Random, vocabulary: int) -> Asked:
    """A statement that is true as often as not."""
    true = rng.random() < 0.5
    form = rng.random()
    related = _related(scene)
    if form < 0.25 and related:
        first, relation, second = pick(rng, related)
        said = relation if true else INVERSE[relation]
        text = f"is the {first.thing.name} {said} the {second.thing.name}?"
    elif form < 0.5:
        colour = scene.background if true else pick(rng, [name for name in BACKGROUNDS if name != scene.background])
        text = f"is the background {colour}?"
    elif form < 0.65 and (singles := _singles(scene)):
        placed = pick(rng, singles)
        size = placed.size if true else pick(rng, [name for name in SIZES if name != placed.size])
        text = f"is the {placed.thing.name} {size}?"
    else:
        shown = {placed.thing for placed in scene.placed}
        others = things()[:vocabulary]
        thing = pick(rng, scene.placed).thing
        while not true and thing in shown:
            thing = pick(rng, others)
        text = f"is there {thing.a}?"
    return text, "yes" if true else "no"


_KINDS: dict[str, Callable[[Scene, random.Random, int], Asked]] = {
    "what": _what,
    "how many": _how_many,
    "colour": _colour,
    "group": _group,
    "where": _where,
    "relation": _relation,
    "yes/no": _yes_no,
}
KINDS = tuple(_KINDS)
"""Every kind of question."""
