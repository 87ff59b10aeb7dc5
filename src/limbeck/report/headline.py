"""The sentence and the figures that sum a report up: what the smaller model keeps of the larger, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limbeck.report.runs import Run
from limbeck.report.table import COLUMNS, Column, columns_of, shares, the_teacher, values

HEADLINE = ("TR@1", "IR@1", "CIDEr", "VQA")
"""the metrics of DLIP's Figure 1; the mean share kept is taken over these"""


@dataclass(frozen=True)
class Fact:
    """One figure."""

    value: str
    what: str
    detail: str


@dataclass(frozen=True)
class Headline:
    """What was kept and what it costs."""

    sentence: str
    facts: tuple[Fact, ...]


def make_headline(runs: Sequence[Run]) -> Headline:
    """Sum up the distilled student that keeps most of the teacher, or of two models the smaller beside the other."""
    teacher = the_teacher(runs)
    distilled = [run for run in runs if run.role == "distilled"]
    if sorted(run.role for run in runs) == ["large", "tiny"]:
        return _duet(*sorted(runs, key=lambda run: run.role))
    if sorted(run.role for run in runs) == ["student", "teacher"]:
        return _competitors(*sorted(runs, key=lambda run: run.role))
    if teacher is None or not distilled:
        return Headline(f"Quality and cost of {len(runs)} model{'s' * (len(runs) != 1)}.", ())
    best = max(distilled, key=lambda run: _mean(_headline_shares(run, teacher)))
    plain = next((run for run in runs if run.role == "plain" and _is_same_student(run, best)), None)
    quality, cost = _kept(best, teacher), _costs(best, teacher)
    student = "The distilled student" if len(distilled) == 1 else f"The distilled student {best.name}"
    return Headline(_sentence(student, quality, cost), (*quality, *cost, *_gain(best, plain)))


def _duet(large: Run, tiny: Run) -> Headline:
    quality, cost = _kept(tiny, large, "of the large one"), _costs(tiny, large)
    return Headline(_sentence("The tiny model", quality, cost), (*quality, *cost))


def _competitors(student: Run, teacher: Run) -> Headline:
    quality, cost = _kept(student, teacher), _costs(student, teacher)
    return Headline(_sentence("The student", quality, cost), (*quality, *cost))


def _sentence(student: str, quality: Sequence[Fact], cost: Sequence[Fact]) -> str:
    keeps = [f"keeps {fact.value} {fact.what}" for fact in quality] or ["runs"]
    costs = f" with {listed([f'{fact.value} {fact.what}' for fact in cost])}" if cost else ""
    return f"{student} {keeps[0]}{costs}."


def _kept(student: Run, teacher: Run, whose: str = "of its teacher") -> list[Fact]:
    share = {column: part for column, part in _shares(student, teacher).items() if not column.is_cost}
    if not share:
        return []
    main = _headline_shares(student, teacher)
    least = min(share, key=lambda column: share[column])
    over = f"mean of {listed([column.label for column in main])}; least: {least.label}, {share[least]:.0%}"
    return [Fact(f"{_mean(main):.0%}", f"{whose}\N{RIGHT SINGLE QUOTATION MARK}s quality", over)]


def _costs(student: Run, teacher: Run) -> list[Fact]:
    facts: list[Fact] = []
    for column, share in _shares(student, teacher).items():
        beside = f"{column.show(values(student)[column.key])} beside {column.show(values(teacher)[column.key])}"
        if column.key == "parameters":
            facts.append(Fact(f"{share:.0%}", "of the parameters", beside))
        elif column.key == "macs":
            facts.append(Fact(f"{share:.0%}", "of the MACs", beside))
        elif column.key == "latency_ms" and share:
            facts.append(Fact(f"{1 / share:.1f}\N{MULTIPLICATION SIGN}", "the speed", beside))
    return facts


def _is_same_student(one: Run, other: Run) -> bool:
    """Whether two models have as many parameters and, where both recipes are there, one `student` section."""
    sizes = [run.costs.get("parameters") for run in (one, other)]
    known = one.student is not None and other.student is not None
    return sizes[0] is not None and sizes[0] == sizes[1] and (not known or one.student == other.student)


def _gain(student: Run, plain: Run | None) -> list[Fact]:
    mine, other = values(student), values(plain) if plain else {}
    both = [column.key for column in COLUMNS if not column.is_cost and column.key in mine and column.key in other]
    above = sum(mine[key] > other[key] for key in both)
    what, detail = "metrics above the plain student", "the same student trained without a teacher"
    return [Fact(f"{above} of {len(both)}", what, detail)] if both else []


def _shares(student: Run, teacher: Run) -> dict[Column, float]:
    share = shares(student, teacher)
    return {column: share[column.key] for column in columns_of([student]) if column.key in share}


def _headline_shares(student: Run, teacher: Run) -> dict[Column, float]:
    """Shares of `HEADLINE`'s metrics, or of all where none of those was measured."""
    quality = {column: part for column, part in _shares(student, teacher).items() if not column.is_cost}
    return {column: part for column, part in quality.items() if column.key in HEADLINE} or quality


def _mean(share: Mapping[Column, float]) -> float:
    return sum(share.values()) / len(share) if share else 0.0


def listed(words: Sequence[str]) -> str:
    """Words as in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
