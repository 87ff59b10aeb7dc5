"""Held-out examples beside their pictures: what each model retrieved, wrote, answered and looked at."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from limbeck.report.heat import Grid
from limbeck.report.records import Record, ReportError, read_lines, read_list

PNG = b"\x89PNG\r\n\x1a\n"
TOP = 5
"""retrieved captions that are shown"""


class RowKey(NamedTuple):
    """A row of an evaluation by a model that writes."""

    file: str
    """<file>.jsonl"""
    id: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a picture and what people answered."""

    text: str
    answers: tuple[str, ...]
    row: RowKey | None = None
    """where a model that writes has answered it; None: by its text"""


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One held-out picture, with what this run's model looks at in it."""

    id: str
    file: Path
    captions: tuple[str, ...]
    questions: tuple[Question, ...]
    image_attention: Grid
    """how much the image tower's class token looks at each patch, rows from the top; empty where it was not kept"""
    caption_attention: Grid
    """how much the caption's words look at each patch; empty where it was not kept"""
    written: RowKey | None = None
    """where a model that writes has described it; None: by its id"""


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """The first captions that a model finds for a picture."""

    captions: tuple[tuple[str, bool], ...]
    """text, and whether it belongs to the picture"""
    rank: int
    """where the first right caption stands, from 1"""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered to one question."""

    question: str
    kind: str
    answer: str
    accuracy: float | None
    """0 to 1; None where the right answer is secret"""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's output by picture id."""

    retrieved: Mapping[str, Retrieved]
    captions: Mapping[str, str]
    answers: Mapping[str, tuple[Answer, ...]]
    rows: Mapping[RowKey, Answer]
    """of a model that writes, by row"""


def read_gallery(folder: Path) -> tuple[GalleryItem, ...]:
    """What `gallery.json` lists; empty where there is none.

    Raises:
        ReportError: an entry lacks its id or file, or the file is not beside `gallery.json`.
    """
    items: list[GalleryItem] = []
    for record in read_list(folder / "gallery.json"):
        name = record.text("file")
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise ReportError(f"{record.place}, file: wanted the name of a picture in {folder}, found {name!r}")
        items.append(
            GalleryItem(
                id=record.text("id"),
                file=file,
                captions=record.texts("captions"),
                questions=tuple(
                    Question(text=q.text("text"), answers=q.texts("answers"), row=_row_key(q))
                    for q in record.parts("questions")
                ),
                image_attention=record.grid("image_attention"),
                caption_attention=record.grid("caption_attention"),
                written=_row_key(record.part("written")),
            )
        )
    return tuple(items)


def read_predictions(folder: Path) -> Predictions:
    """The rows of an `evaluation` folder by picture; empty where a task was not evaluated.

    Raises:
        ReportError: a row lacks a field.
    """
    retrieved: dict[str, Retrieved] = {}
    for row in read_lines(folder / "retrieval.jsonl"):
        own = row.text("id")
        found = tuple((text.text("text"), text.text("id") == own) for text in row.parts("texts"))
        retrieved[own] = Retrieved(captions=found[:TOP], rank=int(row.number("text_rank")) + 1)
    captions = {row.text("id"): row.text("prediction") for row in read_lines(folder / "captioning.jsonl")}
    answers: dict[str, tuple[Answer, ...]] = {}
    for row in read_lines(folder / "vqa.jsonl"):
        answer = Answer(
            question=row.text("question"),
            kind=row.maybe_text("kind") or "",
            answer=row.text("prediction"),
            accuracy=row.maybe_number("accuracy"),
        )
        picture = row.text("image_id")
        answers[picture] = (*answers.get(picture, ()), answer)
    return Predictions(retrieved=retrieved, captions=captions, answers=answers, rows={})


def read_written(folder: Path, gallery: Sequence[GalleryItem]) -> Predictions:
    """What a model that writes has said of the gallery's pictures, from the rows of an `evaluation` folder.

    Raises:
        ReportError: a row lacks a field.
    """
    wanted = {item.written for item in gallery} | {q.row for item in gallery for q in item.questions}
    rows: dict[RowKey, Answer] = {}
    for name in sorted({key.file for key in wanted if key is not None}):
        for row in read_lines(folder / f"{name}.jsonl"):
            key = RowKey(name, row.text("id"))
            if key in wanted:
                rows[key] = Answer(
                    question=row.maybe_text("question") or "",
                    kind=row.maybe_text("kind") or "",
                    answer=row.text("prediction"),
                    accuracy=row.maybe_number("accuracy"),
                )
    return Predictions(retrieved={}, captions={}, answers={}, rows=rows)


def _row_key(record: Record) -> RowKey | None:
    """What `rows` and `id` of a gallery's entry name; None where it has no `rows`."""
    if "rows" not in record:
        return None
    name = record.text("rows")
    if Path(name).name != name:
        raise ReportError(f"{record.place}, rows: wanted the name of a file of rows, found {name!r}")
    return RowKey(name, record.text("id"))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A gallery picture as the page embeds it, once."""

    width: int
    height: int
    address: str
    """`data:` address"""


def embed(file: Path) -> Picture:
    """Read a PNG for embedding.

    Raises:
        ReportError: the file is no PNG.
    """
    data = file.read_bytes()
    if not data.startswith(PNG) or len(data) < 24:
        raise ReportError(f"{file}: wanted a PNG picture, found a file that begins with {data[:8]!r}")
    width, height = struct.unpack(">II", data[16:24])
    return Picture(
        width=width, height=height, address="data:image/png;base64," + base64.b64encode(data).decode("ascii")
    )
