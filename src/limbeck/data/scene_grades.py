"""How good an answer to a scene's question is, from 1 to 10, and answers of every quality.

10  the truth             9  the truth in more words
3 - 8  partly right: a thing of the same group, a number off by one, a place that shares a side, part of a list
2  an answer of the right sort, and wrong             1  no answer to such a question
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from limbeck.data.builtin import with_article
from limbeck.data.scene_facts import BACKGROUNDS, PLACES, pick
from limbeck.data.scene_questions import LIST, Asked
from limbeck.data.scene_texts import where
from limbeck.data.scene_words import things

BEST, REWORDED, PARTLY, WRONG, NONE = 10, 9, 5, 2, 1

_MORE_WORDS = re.compile(r"^(?:(?:it is|this is|i see|there is) )?(?:(?:an?|the) )?")
_PLACED = re.compile(r"(.+) ((?:at|on|in) the .+)")
_PART = re.compile(r", (?:and )?| and ")


def grade(asked: Asked, answer: str) -> int:
    """The score of an answer, 1 to 10."""
    said = answer.strip().rstrip(".").lower()
    if said == asked.answer:
        return BEST
    if asked.kind == LIST:
        return _grade_list(asked.answer, said)
    core = _MORE_WORDS.sub("", said).strip()
    if core == asked.answer:
        return REWORDED
    if core not in answers_of(asked.kind):
        return NONE
    return PARTLY if core in _near(asked.kind, asked.answer) else WRONG


@cache
def answers_of(kind: str) -> tuple[str, ...]:
    """Every answer that a kind of question (of KINDS) can have."""
    return {
        "what": tuple(thing.name for thing in things()),
        "relation": tuple(thing.name for thing in things()),
        "how many": ("1", "2", "3", "4"),
        "colour": tuple(BACKGROUNDS),
        "group": tuple(sorted({thing.group for thing in things()})),
        "where": tuple(PLACES),
        "yes/no": ("yes", "no"),
    }[kind]


def draw_answer(rng: random.Random, asked: Asked, others: Sequence[Asked], vocabulary: int) -> str:
    """Half the time the truth; else partly right, wrong, or nothing that answers it.

    `others` are the same scene's questions: their answers are what a model says that looks at the wrong place.
    """
    chance = rng.random()
    if chance < 0.45:
        return asked.answer
    if chance >= 0.92:
        return _garbled(rng, asked, others)
    if asked.kind == LIST:
        return _spoilt_list(rng, asked.answer, vocabulary)
    if chance < 0.5:
        return _more_words(rng, asked)
    unseen = {thing.name for thing in things()[vocabulary:]}
    choices = [name for name in answers_of(asked.kind) if name != asked.answer and name not in unseen]
    near = [name for name in choices if name in _near(asked.kind, asked.answer)]
    if chance < 0.62 and near:
        return pick(rng, near)
    beside = [other.answer for other in others if other.kind == asked.kind and other.answer in choices]
    if chance < 0.75 and beside:
        return pick(rng, beside)
    return pick(rng, choices)


def _grade_list(truth: str, said: str) -> int:
    right, found = _PART.split(truth), _PART.split(said)
    share = len(set(right) & set(found)) / max(len(right), len(found))
    if share == 1:
        return REWORDED
    if share:
        return 3 + round(5 * share)
    return WRONG if any(where(place) in said for place in PLACES) else NONE


@cache
def _near(kind: str, truth: str) -> frozenset[str]:
    """The wrong answers that are partly right."""
    match kind:
        case "what" | "relation":
            [group] = {thing.group for thing in things() if thing.name == truth}
            return frozenset(thing.name for thing in things() if thing.group == group) - {truth}
        case "how many":
            return frozenset({str(int(truth) - 1), str(int(truth) + 1)})
        case "where":
            return frozenset(place for place in PLACES if set(place.split()) & set(truth.split())) - {truth}
    return frozenset()


def _more_words(rng: random.Random, asked: Asked) -> str:
    if asked.kind in ("what", "relation"):
        return pick(rng, (with_article(asked.answer), f"the {asked.answer}", f"it is {with_article(asked.answer)}"))
    return asked.answer if asked.kind == "yes/no" else f"it is {asked.answer}"


def _spoilt_list(rng: random.Random, truth: str, vocabulary: int) -> str:
    """A list with some parts missing, or of other things or places."""
    parts = _PART.split(truth)
    for _ in range(1 + int(2 * rng.random())):
        number = int(rng.random() * len(parts))
        placed = _PLACED.fullmatch(parts[number])
        assert placed is not None, "a part of a list is a thing and its place"
        thing, place = placed.groups()
        chance = rng.random()
        if chance < 0.2 and len(parts) > 1:
            parts.pop(number)
        elif chance < 0.75:
            parts[number] = f"{pick(rng, things()[:vocabulary]).a} {place}"
        else:
            parts[number] = f"{thing} {where(pick(rng, tuple(PLACES)))}"
    return ", ".join(parts)


def _garbled(rng: random.Random, asked: Asked, others: Sequence[Asked]) -> str:
    """What a model writes that has learned little: half a word, a word twice, an answer to something else."""
    chance = rng.random()
    if chance < 0.3:
        return asked.answer[: len(asked.answer) // 2]
    if chance < 0.5:
        return f"{asked.answer} {asked.answer}"
    return pick(rng, [other.answer for other in others if other.kind != asked.kind])
