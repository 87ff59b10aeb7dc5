"""How a page shows competitions: their charts, answers after each tuning beside the picture, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from limbeck.report.cases import Case, Cases
from limbeck.report.charts import Panel, Point
from limbeck.report.competition import Competition, Example, Round, Tried
from limbeck.report.examples import Answer, Picture, RowKey
from limbeck.report.round_charts import histogram_panels, round_panel

BIAS = (
    ("flips", "verdict flips with the order", "term-1"),
    ("first_better", "first answer scored higher", "term-5"),
    ("second_better", "second answer scored higher", "term-3"),
)
"""shares of a round that tell how the order of the answers sways the assessor, and their colours"""


@dataclass(frozen=True)
class AnswersByTuning:
    """One question, or the wish for a description, and what each model said to it."""

    question: str
    right: tuple[str, ...]
    answers: tuple[Answer | None, ...]
    """the student's after each tuning that was tried, then the teacher's"""


@dataclass(frozen=True)
class CaseByTuning:
    """A held-out picture with the answers to what was asked about it."""

    case: Case
    rows: tuple[AnswersByTuning, ...]


@dataclass(frozen=True)
class CompetitionView:
    """One run's competition as the page shows it."""

    told: Competition
    number: int
    """among the page's competitions, from 1"""
    cases: tuple[CaseByTuning, ...]

    @property
    def models(self) -> list[tuple[str, str]]:
        """Name and colour of whoever answered, in the order of the answers."""
        learner = [(f"tuning {number}", self.told.tone) for number in self.told.tunings]
        return [*learner, *([("teacher", "teacher")] if self.told.teacher else [])]

    @property
    def scores(self) -> list[Panel]:
        """The paper's Figure 4: a panel for each figure of the benchmarks, with the teacher's as a level."""
        panels: list[Panel] = []
        for column in self.told.columns:
            points = [(float(n), tried.figures[column.key]) for n, tried in _with(self.told, column.key)]
            theirs = self.told.teacher.figures.get(column.key) if self.told.teacher else None
            level = None if theirs is None else ("teacher", theirs)
            if points:
                series = [("student", self.told.tone, points)]
                panels.append(round_panel(column.label, "tuning", series, level=level, show=column.show))
        return panels

    @property
    def histograms(self) -> list[Panel]:
        """Of the difficulty of each round's instructions, with tau."""
        rounds = [each for each in self.told.rounds if any(bin.count for bin in each.difficulty)]
        return histogram_panels([(f"round {r.number}", r.difficulty, r.tau) for r in rounds], self.told.tone)

    @property
    def growth(self) -> list[Panel]:
        """Instructions of the pool after each round."""
        points = [(float(each.round), float(each.total)) for each in self.told.growth]
        series = [("instructions", self.told.tone, points)]
        return [round_panel("Instructions in the pool", "round", series)] if len(points) > 1 else []

    @property
    def assessment(self) -> list[Panel]:
        """Mean scores of both, and how the order of their answers sways the assessor."""
        rounds = self.told.rounds
        means: list[tuple[str, str, list[Point]]] = [
            ("teacher", "teacher", [(float(r.number), r.teacher) for r in rounds if r.teacher is not None]),
            ("student", self.told.tone, [(float(r.number), r.student) for r in rounds if r.student is not None]),
        ]
        sways: list[tuple[str, str, list[Point]]] = [
            (label, tone, [(float(r.number), r.bias[key] * 100) for r in rounds if key in r.bias])
            for key, label, tone in BIAS
        ]
        panels = (("Mean score", means), ("Position bias, %", sways))
        kept = [(title, [each for each in series if each[2]]) for title, series in panels]
        return [round_panel(title, "round", series) for title, series in kept if series]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """What the lines of `assessment` are, and their colours."""
        return [("teacher", "teacher"), ("student", self.told.tone), *((label, tone) for _, label, tone in BIAS)]

    @cached_property
    def pictures(self) -> dict[str, Picture]:
        """The pictures of instructions, each once, by the id that it has on the page."""
        found: dict[int, Picture] = {}
        for example in self._examples:
            if example.picture is not None:
                found.setdefault(id(example.picture), example.picture)
        return {f"instruction-{self.number}-{place}": picture for place, picture in enumerate(found.values(), start=1)}

    def place(self, example: Example) -> str | None:
        """The id of an example's picture on the page."""
        return next((name for name, picture in self.pictures.items() if picture is example.picture), None)

    @property
    def _examples(self) -> list[Example]:
        return [example for each in self.told.rounds for example in each.examples]


def make_views(competitions: Sequence[Competition], cases: Cases) -> list[CompetitionView]:
    """Join competitions with the pictures that the page embeds."""
    return [
        CompetitionView(told, number, tuple(_cases(told, cases))) for number, told in enumerate(competitions, start=1)
    ]


def _cases(told: Competition, cases: Cases) -> list[CaseByTuning]:
    own = {item.id: item for item in told.gallery}
    found: list[CaseByTuning] = []
    for case in cases.shown:
        item = own.get(case.id)
        if item is None:
            continue
        asked: list[tuple[str, tuple[str, ...], RowKey | None]] = [
            ("Describe the picture.", item.captions, item.written)
        ]
        asked += [(question.text, question.answers, question.row) for question in item.questions]
        rows = tuple(AnswersByTuning(text, right, _answers(told, key)) for text, right, key in asked)
        rows = tuple(row for row in rows if any(row.answers))
        if rows:
            found.append(CaseByTuning(case, rows))
    return found


def _answers(told: Competition, key: RowKey | None) -> tuple[Answer | None, ...]:
    everyone = [*told.tunings.values(), *([told.teacher] if told.teacher else [])]
    return tuple(tried.said.get(key) if key else None for tried in everyone)


def _with(told: Competition, key: str) -> list[tuple[int, Tried]]:
    return [(number, tried) for number, tried in told.tunings.items() if key in tried.figures]


def competition_json(told: Competition) -> dict[str, object]:
    """The competition for programs: what the page shows of it but pictures and answers about held-out ones."""
    return {
        "tunings_planned": told.planned,
        "ended_by_round": told.ended,
        "tunings": {str(number): dict(tried.figures) for number, tried in told.tunings.items()},
        "teacher": dict(told.teacher.figures) if told.teacher else None,
        "rounds": [_round_json(each) for each in told.rounds],
        "pool": [asdict(each) for each in told.growth],
        "cost": [asdict(each) for each in told.spent],
        "refusals": [asdict(each) for each in told.refusals],
    }


def _round_json(played: Round) -> dict[str, object]:
    found = {"round": played.number} | asdict(played)
    found["difficulty"] = [{"from": each.low, "to": each.high, "count": each.count} for each in played.difficulty]
    found["examples"] = [
        {key: value for key, value in asdict(each).items() if key != "picture"} for each in played.examples
    ]
    return {key: value for key, value in found.items() if key != "number"}
