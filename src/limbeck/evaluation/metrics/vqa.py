"""VQA accuracy by the rules of the official evaluation (Antol et al., 2015; VQA v2's own script). In percent."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
"""The official pattern also means to look behind, but is written so that it does not."""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")

_MISSING_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm
    I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
    shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're
    there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
    you've
"""
_MISSING_ONE_OF_TWO = """
    couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
_ODD = {
    "somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at",
    "yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've",
}  # fmt: skip
"""Entries that follow no pattern; the first is the official list's own slip."""


def _contractions() -> dict[str, str]:
    """Spelling without an apostrophe -> with it."""
    single = {word.replace("'", ""): word for word in _MISSING_APOSTROPHE.split()}
    double = {}
    for word in _MISSING_ONE_OF_TWO.split():
        first, second, third = word.split("'")
        double |= {f"{first}{second}'{third}": word, f"{first}'{second}{third}": word}
    return single | double | _ODD


CONTRACTIONS = _contractions()


def normalise(answer: str) -> str:
    """An answer as the official script compares it: punctuation, case, number words, articles, contractions."""
    answer = strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = (_NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def strip_punctuation(answer: str) -> str:
    """A mark that stands beside a space goes, as all do where there is a number like 1,000; others become a space.

    Periods go unless a digit follows.
    """
    stripped = answer
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        goes = beside_space or _COMMA_IN_NUMBER.search(answer) is not None
        stripped = stripped.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", stripped)


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How right an answer is, from 0 to 1.

    With ten answers or more: mean over annotators left out of min(1, others who agree / 3), as in VQAv2, where people's
    answers lose their punctuation only if they are not all the same. With fewer, as in built-in scenes: 1 if the
    normalised answer is one of theirs, normalised, else 0. Raises ValueError where there is no answer.
    """
    if not answers:
        raise ValueError(f"accuracy of {prediction!r}: the question has no answer to compare with")
    prediction = normalise(prediction)
    if len(answers) < 10:
        return float(prediction in {normalise(answer) for answer in answers})
    if len(set(answers)) > 1:
        answers = [strip_punctuation(answer) for answer in answers]
    agree = [answer == prediction for answer in answers]
    return sum(min(1.0, (sum(agree) - own) / 3) for own in agree) / len(agree)


def mean_accuracy(scored: Iterable[tuple[str | None, float]]) -> tuple[float, dict[str, float]]:
    """Accuracy over all questions and by kind, in percent, from (kind or None, accuracy from 0 to 1) of each question.

    In VQAv2 the kind is the answer's type (yes/no, number, other). Raises ValueError where there is no question.
    """
    by_kind: defaultdict[str | None, list[float]] = defaultdict(list)
    for kind, score in scored:
        by_kind[kind].append(score)
    scores = [score for group in by_kind.values() for score in group]
    if not scores:
        raise ValueError("mean_accuracy: there are no questions")
    named = sorted((kind, group) for kind, group in by_kind.items() if kind is not None)
    return _percent(scores), {kind: _percent(group) for kind, group in named}


def _percent(scores: Sequence[float]) -> float:
    return 100 * sum(scores) / len(scores)
