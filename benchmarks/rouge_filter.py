"""ROUGE-L of new instructions with those that are there: limbeck's against the package `rouge-score`, pairs a second.

    python benchmarks/rouge_filter.py [--smoke] [--json FILE] [--write-docs]

Two shapes: `matrix`, 1,000 against 20,000 on one thread; and `by picture`, each new instruction against the ten of its
picture, one call each, as the competition asks, where half of the time goes into the new one's tokens. Instructions are
synthetic: 8 to 24 words drawn by Zipf's law, one in eight a near copy of another. rouge-score is timed on 10,000 of the
pairs (1,000 in `--smoke`); values are compared there. It needs `pip install rouge-score`.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product

from harness import Claim, Row, at_least, milliseconds, parse, publish

from limbeck.competition.novelty import Novelty, rouge_l

LIMIT = 0.7
WANTED = {"matrix": 100, "by picture": 50}
"""Times rouge-score's pairs a second."""
GROUP = 10
WORDS = [f"word{number}" for number in range(3000)]
FREQUENCIES = [1 / (rank + 1) for rank in range(len(WORDS))]
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Shape:
    """What is compared with what."""

    name: str
    size: str
    pairs: int
    limbeck: Callable[[], list[float]]
    """does it all, and gives the values of the pairs in `compared`; by picture, each one's greatest"""
    compared: list[Pairs]
    """what rouge-score does too: of each entry the greatest value counts"""


def instructions(count: int, seed: int) -> list[str]:
    """Synthetic instructions, the same for the same seed."""
    rng = random.Random(seed)
    made: list[str] = []
    for _ in range(count):
        if made and rng.random() < 1 / 8:
            words = rng.choice(made).split()
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        else:
            words = rng.choices(WORDS, FREQUENCIES, k=rng.randint(8, 24))
        made.append(" ".join(words))
    return made


def by_picture(pictures: int, sampled: int) -> Shape:
    """Every picture's new instruction against those that it has."""
    texts = instructions(pictures * (GROUP + 1), seed=1)
    groups = [texts[start : start + GROUP + 1] for start in range(0, len(texts), GROUP + 1)]
    novelty = Novelty((str(number), text) for number, group in enumerate(groups) for text in group[:-1])

    def limbeck() -> list[float]:
        return [novelty.best(str(number), group[-1]) for number, group in enumerate(groups)][: sampled // GROUP]

    compared = [[(old, group[-1]) for old in group[:-1]] for group in groups[: sampled // GROUP]]
    return Shape("by picture", f"{pictures:,} x {GROUP}", pictures * GROUP, limbeck, compared)


def matrix(new: int, old: int, sampled: int) -> Shape:
    """Every new instruction against every old one."""
    texts = instructions(new + old, seed=2)
    some, others = texts[-new:], texts[:old]
    width = sampled // 20

    def limbeck() -> list[float]:
        return rouge_l(some, others)[:20, :width].ravel().tolist()

    compared = [[(text, other)] for text, other in product(some[:20], others[:width])]
    return Shape("matrix", f"{new:,} x {old:,}", new * old, limbeck, compared)


class Prepared:
    """Tokens made before, for rouge-score's own comparison alone."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a lowered text."""
        return text.split()


def measure(shape: Shape, rounds: int) -> tuple[list[dict[str, str | float]], list[float], list[float]]:
    """One row for each way, and the values by limbeck and by rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    plain, prepared = RougeScorer(["rougeL"]), RougeScorer(["rougeL"], tokenizer=Prepared())

    def by_package(scorer: RougeScorer) -> list[float]:
        return [max(scorer.score(old, new)["rougeL"].fmeasure for old, new in pairs) for pairs in shape.compared]

    ways: dict[str, tuple[int, Callable[[], list[float]]]] = {
        "rouge-score": (sum(map(len, shape.compared)), lambda: by_package(plain)),
        "rouge-score, split before": (sum(map(len, shape.compared)), lambda: by_package(prepared)),
        "limbeck": (shape.pairs, shape.limbeck),
    }
    times = milliseconds({name: work for name, (_, work) in ways.items()}, rounds, "cpu")
    rows = [
        {
            "shape": shape.name,
            "size": shape.size,
            "variant": name,
            "pairs": pairs,
            "ms": times[name],
            "pairs/s": 1000 * pairs / times[name],
        }
        for name, (pairs, _) in ways.items()
    ]
    return rows, shape.limbeck(), by_package(plain)


def claims(measured: Sequence[tuple[list[dict[str, str | float]], list[float], list[float]]]) -> list[Claim]:
    """What is wanted: the same values, and that much more speed."""
    found, errors, decided = [], [], []
    for rows, ours, theirs in measured:
        speed = {str(row["variant"]): float(row["pairs/s"]) for row in rows}
        ratio, shape = speed["limbeck"] / speed["rouge-score"], str(rows[0]["shape"])
        found.append(at_least(f"times the pairs a second of rouge-score, {shape}", WANTED[shape], ratio))
        errors += [abs(one - other) for one, other in zip(ours, theirs, strict=True)]
        decided += [
            (one < LIMIT) == (other < LIMIT)
            for one, other in zip(ours, theirs, strict=True)
            if abs(one - LIMIT) > 1e-9  # where it is exactly 0.7, rouge-score's rounding decides
        ]
    other = decided.count(False)
    return [
        *found,
        Claim("largest difference from rouge-score's values", "<= 1e-9", f"{max(errors):.1e}", max(errors) <= 1e-9),
        Claim(f"other decisions at {LIMIT} of {len(decided)}", "0", str(other), other == 0),
    ]


def options() -> argparse.Namespace:
    """The parsed options."""
    found = parse(__doc__)
    if found.device != "cpu":
        sys.exit("rouge_filter: nothing of it runs on a GPU; leave --device out")
    return found


def main() -> None:
    """Measure, print and write."""
    given = options()
    if find_spec("rouge_score") is None:
        print("rouge_filter skipped: it needs `pip install rouge-score`")
        return
    if given.smoke:
        shapes, rounds = [matrix(200, 2_000, 1_000), by_picture(2_000, 1_000)], 3
    else:
        shapes, rounds = [matrix(1_000, 20_000, 10_000), by_picture(20_000, 10_000)], given.rounds
    measured = [measure(shape, rounds) for shape in shapes]
    rows: list[Row] = [row for group, _, _ in measured for row in group]
    publish("rouge_filter", rows, claims(measured), given)


if __name__ == "__main__":
    main()
