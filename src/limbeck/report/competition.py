"""What a CoMD run folder says of its competition: scores by tuning, and of every round what was found and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from limbeck.report.examples import Answer, GalleryItem, Picture, RowKey, embed, read_gallery, read_written
from limbeck.report.records import Record, ReportError, read_object, read_yaml
from limbeck.report.round_charts import Bin
from limbeck.report.runs import Run, RunEntry, read_run
from limbeck.report.table import Column, columns_of, values

BUDGET = 4_000_000
"""characters of embedded pictures of instructions past which no more are added, so that the page stays light"""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A model on the benchmarks, and what it said about the gallery's pictures."""

    figures: Mapping[str, float]
    """quality by column"""
    said: Mapping[RowKey, Answer]


@dataclass(frozen=True, kw_only=True)
class Example:
    """An instruction, both answers to it, and what was written from it."""

    instruction: str
    text: str
    picture: Picture | None
    answers: Mapping[str, str]
    """by role"""
    scores: tuple[float, ...]
    """the teacher's and the student's, each the mean over both orders; empty where none could be read"""
    difficulty: float | None
    kind: str | None
    """hard or easy"""
    written: str


@dataclass(frozen=True, kw_only=True)
class Round:
    """One closed round. Where a number is None, nothing was assessed."""

    number: int
    tau: float | None
    """None where the rule of difficulty has none"""
    instructions: int
    """all that were put to teacher and student"""
    hard: int
    easy: int
    unparsed: int
    chosen: int
    written: int
    accepted: int
    rejected: Mapping[str, int]
    """new instructions that were not taken, by the reason"""
    teacher: float | None
    student: float | None
    """mean scores, 1 to 10"""
    bias: Mapping[str, float]
    """`flips` of instructions, `first_better` and `second_better` of calls; shares"""
    replies: int
    """of the assessor"""
    readable: int
    """of these"""
    difficulty: tuple[Bin, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Growth:
    """What a round added to the pool."""

    round: int
    """0 for the first pool"""
    instructions: int
    pictures: int
    total: int
    """instructions of the pool after it"""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a role cost; in one round, or in all where `round` is None."""

    role: str
    round: int | None
    calls: int
    read: int
    """tokens"""
    written: int
    seconds: float
    """summed over the calls"""


@dataclass(frozen=True)
class Refusals:
    """Calls that got no reply."""

    role: str
    round: int
    """0 for the teacher's answers, which no round has to itself"""
    count: int
    example: str
    """why, of one of them"""


@dataclass(frozen=True, kw_only=True)
class Competition:
    """A run's competition, as far as it has come."""

    name: str
    tone: str
    model: str
    """the student's name in the report"""
    planned: int
    """tunings"""
    columns: tuple[Column, ...]
    """figures of the benchmarks that any tuning or the teacher was tried on"""
    tunings: Mapping[int, Tried]
    """the student after each tuning that was tried"""
    teacher: Tried | None
    """None where it was not tried"""
    gallery: tuple[GalleryItem, ...]
    rounds: tuple[Round, ...]
    growth: tuple[Growth, ...]
    spent: tuple[Spent, ...]
    refusals: tuple[Refusals, ...]
    left_out: int
    """pictures of instructions left out to keep the page light"""

    @property
    def sentence(self) -> str:
        """How far it has come."""
        done = f"{len(self.rounds)} of {max(self.planned - 1, 0)} rounds between {self.planned} tunings are closed"
        if not self.growth:
            return f"{done}."
        grown = f"; the pool has grown from {self.growth[0].instructions:,} to {self.growth[-1].total:,} instructions"
        return f"{done}{grown if len(self.growth) > 1 else ''}."

    @property
    def totals(self) -> tuple[Spent, ...]:
        """Cost by role, over all rounds."""
        roles = dict.fromkeys(each.role for each in self.spent)
        return tuple(_sum(role, [each for each in self.spent if each.role == role]) for role in roles)


def read_competition(folder: Path, name: str, model: str, tone: str) -> Competition | None:
    """Read a run folder; None where its recipe holds no competition.

    Raises:
        ReportError: one of its files holds something else than it should.
    """
    recipe = read_yaml(folder / "recipe.yaml")
    told = read_object(folder / "competition.json")
    if told is None and (recipe is None or "competition" not in recipe):
        return None
    found = told or Record({}, str(folder / "competition.json"))
    held = recipe.part("competition") if recipe else Record({}, str(folder / "recipe.yaml"))
    gallery = read_gallery(folder / "gallery")
    runs = {number: _tried_run(place, f"tuning {number}") for number, place in _tunings(folder)}
    teacher = _tried_run(folder / "teacher", "teacher") if (folder / "teacher").is_dir() else None
    theirs = _quality(teacher) if teacher else {}
    everyone = [*runs.values(), *([teacher] if teacher else [])]
    columns = [column for column in columns_of(everyone) if not column.is_cost]
    pictures = _Pictures(folder)
    rounds = tuple(_round(each, found, pictures) for each in found.parts("rounds"))
    return Competition(
        name=name,
        tone=tone,
        model=model,
        planned=int(held.maybe_number("tunings") or len(rounds) + 1),
        columns=tuple(column for column in columns if any(column.key in values(run) for run in everyone)),
        tunings={
            number: Tried(figures=_quality(run), said=_said(folder / "rounds" / str(number), gallery))
            for number, run in runs.items()
        },
        teacher=Tried(figures=theirs, said=_said(folder / "teacher", gallery)) if theirs else None,
        gallery=gallery,
        rounds=rounds,
        growth=_growth(found.parts("instructions")),
        spent=tuple(_spent(each) for each in found.parts("cost")),
        refusals=tuple(
            Refusals(each.text("role"), int(each.number("round")), _count(each, "refused"), each.text("example"))
            for each in found.parts("refusals")
        ),
        left_out=pictures.left_out,
    )


def _tunings(folder: Path) -> Iterator[tuple[int, Path]]:
    """The tunings after which the student was tried, in order."""
    found = [place.parent.parent for place in (folder / "rounds").glob("*/evaluation/summary.json")]
    numbers = {int(place.name): place for place in found if place.name.isdecimal()}
    yield from sorted(numbers.items())


def _tried_run(folder: Path, name: str) -> Run:
    return read_run(RunEntry(role="student", name=name, folder=folder, kind="writer"))


def _quality(run: Run) -> dict[str, float]:
    return {c.key: values(run)[c.key] for c in columns_of([run]) if not c.is_cost and c.key in values(run)}


def _said(folder: Path, gallery: Sequence[GalleryItem]) -> Mapping[RowKey, Answer]:
    return read_written(folder / "evaluation", gallery).rows


class _Pictures:
    """The pictures of the instructions that are shown, each read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, Picture | None] = {}
        self._room = BUDGET

    @property
    def left_out(self) -> int:
        return sum(picture is None for picture in self._read.values())

    def embed(self, example: Record) -> Picture | None:
        """None where the example has no picture, or there is no room for it any more."""
        if "picture" not in example:
            return None
        name = example.text("picture")
        file = self._folder / "gallery" / Path(name).name
        if Path(name) != Path("gallery") / Path(name).name or not file.is_file():
            place = self._folder / "gallery"
            raise ReportError(f"{example.place}, picture: wanted a picture in {place}, found {name!r}")
        if name not in self._read:
            picture = embed(file)
            self._room -= len(picture.address)
            self._read[name] = picture if self._room >= 0 else None
        return self._read[name]


def _round(played: Record, told: Record, pictures: _Pictures) -> Round:
    number = int(played.number("round"))
    settings = played.part("settings")
    replies = [each for each in told.parts("assessments") if each.number("round") == number]
    written = [each for each in told.parts("augmentations") if each.number("round") == number]
    return Round(
        number=number,
        tau=settings.maybe_number("tau") if settings.maybe_text("difficulty") != "lion" else None,
        instructions=_count(played, "instructions"),
        hard=_count(played, "hard"),
        easy=_count(played, "easy"),
        unparsed=_count(played, "unparsed"),
        chosen=_count(played, "chosen"),
        written=sum(_count(each, "written") for each in written),
        accepted=_count(played, "accepted"),
        rejected={why: int(count) for why, count in played.part("rejected").all_numbers().items()},
        teacher=played.maybe_number("teacher"),
        student=played.maybe_number("student"),
        bias=played.part("bias").all_numbers(),
        replies=sum(_count(each, "assessments") for each in replies),
        readable=sum(_count(each, "parsed") for each in replies),
        difficulty=tuple(
            Bin(each.number("from"), each.number("to"), int(each.number("count")))
            for each in told.part("difficulty").parts(str(number))
        ),
        examples=tuple(_example(each, pictures) for each in played.parts("examples")),
    )


def _example(example: Record, pictures: _Pictures) -> Example:
    scores = example.numbers("scores")
    if len(scores) not in (0, 2):
        raise example.wrong("scores", "two numbers or none", scores)
    answers = example.part("answers")
    return Example(
        instruction=example.text("instruction"),
        text=example.text("text"),
        picture=pictures.embed(example),
        answers={role: answers.text(role) for role in answers.data},
        scores=scores,
        difficulty=example.maybe_number("difficulty"),
        kind=example.maybe_text("kind"),
        written=example.text("written"),
    )


def _growth(counts: Sequence[Record]) -> tuple[Growth, ...]:
    totals = accumulate(_count(each, "instructions") for each in counts)
    return tuple(
        Growth(int(each.number("round")), _count(each, "instructions"), _count(each, "images"), total)
        for each, total in zip(counts, totals, strict=True)
    )


def _spent(cost: Record) -> Spent:
    return Spent(
        role=cost.text("role"),
        round=int(cost.number("round")),
        calls=_count(cost, "calls"),
        read=_count(cost, "prompt_tokens"),
        written=_count(cost, "new_tokens"),
        seconds=cost.number("seconds"),
    )


def _sum(role: str, spent: Sequence[Spent]) -> Spent:
    return Spent(
        role=role,
        round=None,
        calls=sum(each.calls for each in spent),
        read=sum(each.read for each in spent),
        written=sum(each.written for each in spent),
        seconds=sum(each.seconds for each in spent),
    )


def _count(record: Record, key: str) -> int:
    """A count; 0 where it is absent."""
    return int(record.maybe_number(key) or 0)
