"""What the replies of assessor and augmentor mean: two scores, a new instruction, and how difficult one was.

Spec of the competition: CoMD (section 3.3, Eq. 6) with Lion's post-filter and its other rule of difficulty.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from limbeck.data.conversations import IMAGE

LOWEST, HIGHEST = 1.0, 10.0
"""The assessor's scale. A 0 is clamped to it: it would lift Eq. 6 above 1, and 0 against 0 divides by nothing."""

TAU = 0.33
"""CoMD's threshold of difficulty."""

DifficultyRule = Literal["comd", "lion"]

_BLANK = r"[^\S\n]"
_MARKS = rf"(?:{_BLANK}|[*_`\"'<(\[])*+"
_NUMBER = (
    rf"(?P<score>\d+(?:\.\d+)?)(?:{_BLANK}*+(?:/|\bout of\b){_BLANK}*+(?P<of>\d+))?"
    rf"(?![\d.]*\d)(?!\w)(?!{_BLANK}*+(?:/|out of\b|(?:-|\u2013|to){_BLANK}*+\d))"
)
_SAYS = r"(?:[:=\-\u2013\uff1a]|\bis\b|\bwould be\b)"
_NAMED = r"assistant\s*#?{number}\b"
_SCORE_OF = rf"scores?\s+(?:of|for)\s+(?:the\s+)?{_NAMED}{_MARKS}{_SAYS}\s*+{_MARKS}{_NUMBER}"
_ASSISTANT = (
    rf"(?:^|[,;]|\band\b){_BLANK}*+[*_\-•#]*+{_BLANK}*+{_NAMED}(?:'s)?(?:{_BLANK}+score)?"
    rf"{_MARKS}{_SAYS}{_MARKS}{_NUMBER}(?=[\s*_`>)\]]*(?:$|[(,;.\u2013-]|and\b))"
)
_IN_TEN = r"(\d+(?:\.\d+)?)(?:/10)?"
_PAIR = re.compile(
    rf"^{_MARKS}(?:(?:output|scores?){_MARKS}[:=\uff1a])?{_MARKS}{_IN_TEN}"
    rf"(?:(?:{_BLANK}|[,;|&*])+|{_BLANK}+(?:and|vs\.?){_BLANK}+){_IN_TEN}(?:{_BLANK}|[*_`\"'>)\].])*$",
    re.IGNORECASE | re.MULTILINE,
)
_TUPLE = re.compile(
    r"\b(?:scores?|output|ratings?)\b[^\n()]{0,200}\(\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)\s*\)", re.IGNORECASE
)


def scores(text: str) -> tuple[float, float] | None:
    """The scores of assistants 1 and 2, clamped to [1, 10]; None where the reply does not say them."""
    said = said_scores(text)
    return said and (_clamped(said[0]), _clamped(said[1]))


def said_scores(text: str) -> tuple[float, float] | None:
    """The scores of assistants 1 and 2 as the reply says them; None where it does not.

    The first of these that is found counts: the last `Score of Assistant N: x` of both; the first line of nothing but
    two numbers (Vicuna's form); the last `Assistant N: x` of both; the last pair in parentheses behind "score" or
    "output". Numbers are between 0 and 10: `x/5`, `x/100` and the like are brought to that scale, and a form with a
    number above it is none. Markdown around names and numbers is ignored. Two numbers in the middle of a sentence are
    no scores.
    """
    if found := _by_name(_SCORE_OF, text):
        return found
    for pair in _PAIR.finditer(text):
        first, second = float(pair[1]), float(pair[2])
        if max(first, second) <= HIGHEST:
            return first, second
    if found := _by_name(_ASSISTANT, text):
        return found
    for pair in reversed(list(_TUPLE.finditer(text))):
        first, second = float(pair[1]), float(pair[2])
        if max(first, second) <= HIGHEST:
            return first, second
    return None


def _by_name(pattern: str, text: str) -> tuple[float, float] | None:
    """What stands last behind the name of each of the two assistants; None where one is not on the scale."""
    found = [
        list(re.finditer(pattern.replace("{number}", number), text, re.IGNORECASE | re.MULTILINE))
        for number in ("1", "2")
    ]
    if not all(found):
        return None
    first, second = (_score(matches[-1]) for matches in found)
    return None if first is None or second is None else (first, second)


def _score(found: re.Match[str]) -> float | None:
    """The score on a scale to 10; None where it lies outside of it."""
    score, of = float(found["score"]), float(found["of"] or HIGHEST)
    return score * HIGHEST / of if score <= of and of > 0 else None


def _clamped(score: float) -> float:
    return min(max(score, LOWEST), HIGHEST)


def flips(teacher_first: tuple[float, float], student_first: tuple[float, float]) -> bool:
    """Whether swapping the order changes who the assessor finds better (a tie is a verdict of its own).

    Each pair is in the order of its own call.
    """
    return _sign(teacher_first[0] - teacher_first[1]) != _sign(student_first[1] - student_first[0])


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def difficulty(teacher: float, student: float) -> float:
    """CoMD's Eq. 6 of two scores in [1, 10]: (|R_S - R_T| + 1) / max(R_S, R_T), in [0.1, 1].

    Its size alone counts: a student far above its teacher is "difficult" as well.
    """
    return (abs(student - teacher) + 1) / max(student, teacher)


def comd_is_hard(teacher: float, student: float, tau: float) -> bool:
    """CoMD: difficult from `tau` on; 0 takes all, and at 1 still those count whose lower score is 1."""
    return difficulty(teacher, student) >= tau


def lion_is_hard(teacher: float, student: float, tau: float) -> bool:
    """Lion: difficult where the teacher is better by one point or more; `tau` plays no part."""
    return teacher - student >= 1


IS_HARD: Mapping[DifficultyRule, Callable[[float, float, float], bool]] = {"comd": comd_is_hard, "lion": lion_is_hard}
"""(R_T, R_S, tau) -> whether the instruction counts as difficult."""


@dataclass(frozen=True)
class Rejected:
    """An augmentor's reply that is no instruction."""

    reason: str


def instruction_budget(seed: str) -> int:
    """New tokens allowed for an instruction written from `seed`: four for each of its words, at least 32."""
    return max(32, 4 * len(seed.split()))


def instruction(text: str, cut: bool, seed: str) -> str | Rejected:
    """The instruction an augmentor wrote from `seed`, blank space around it taken off, or why there is none.

    Lion's post-filter, which drops what was cut, is too short, begins oddly or talks of instructions; and what cannot
    be a user's turn or says the seed once more.
    """
    text = text.strip()
    if cut:
        return Rejected("cut by length")
    if len(text.split()) <= 3:
        return Rejected("three words or fewer")
    if text[0] in string.punctuation:
        return Rejected("begins with punctuation")
    if not text[0].isascii():
        return Rejected("begins with a character outside ASCII")
    if re.search(r"\b(given|created)\s+instruction", text, re.IGNORECASE):
        return Rejected("talks of the given or created instruction")
    if IMAGE in text:
        return Rejected(f"has {IMAGE} in it")
    if text == seed.strip():
        return Rejected("says the given instruction once more")
    return text
