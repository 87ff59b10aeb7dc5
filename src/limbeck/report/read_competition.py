"""What a CoMD run folder says of its competition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from limbeck.report.competition import Competition, Example, Growth, Refusals, Round, Spent, Tried
from limbeck.report.examples import Answer, GalleryItem, Picture, RowKey, embed, read_gallery, read_written
from limbeck.report.records import Record, ReportError, read_object, read_yaml
from limbeck.report.round_charts import Bin
from limbeck.report.runs import Run, RunEntry, read_run
from limbeck.report.table import columns_of, values

BUDGET = 4_000_000
"""characters of embedded pictures of instructions past which no more are added, so that the page stays light"""


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
        ended=_ended(folder),
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


def _ended(folder: Path) -> int | None:
    """The round that left the next tuning without data."""
    empty = [file.parent.name for file in (folder / "rounds").glob("*/data.jsonl") if not file.stat().st_size]
    return min((int(name) - 1 for name in empty if name.isdecimal()), default=None)


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


def _count(record: Record, key: str) -> int:
    """A count; 0 where it is absent."""
    return int(record.maybe_number(key) or 0)
