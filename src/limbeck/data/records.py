"""What the file formats share: where files are, what a record must hold, and what is skipped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from limbeck.config import Section
from limbeck.data.encoding import Ragged
from limbeck.data.examples import DataError, Example, FileImage, ImageSource, Question
from limbeck.data.transform import clean_caption
from limbeck.explain import damaged, is_pointer, nearest

Record = Mapping[str, Any]
"""One JSON object."""


class FilesConfig(Section):
    """Fields of every source that reads files. Relative paths start from the recipe's `data.root`."""

    limit: int | None = Field(default=None, ge=1)
    """use only the first so many examples"""
    max_skipped: float = Field(default=0.01, ge=0, le=1)
    """share of broken records past which loading stops"""


Least = dict[str, float]
"""The least number that a record must have in a field: {similarity: 0.28, width: 200}"""


class BrokenRecord(Exception):
    """A record that makes no example; the message is the reason."""


class MissingPath(DataError):
    """A file or folder that a source names and that is not there; `field` is the source's field, "" where unknown."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def existing_file(base: Path, path: str, what: str) -> Path:
    """The file, or a MissingPath that says what was looked for and what is there; DataError for a pointer of Git LFS.

    `what` says who names it, as "source jsonl, field path".
    """
    file = base / path
    if not file.is_file():
        raise _missing(file, "file", what)
    if is_pointer(file):
        raise DataError(damaged(file, ""))
    return file


def existing_folder(base: Path, path: str, what: str) -> Path:
    """The folder, or a MissingPath; `what` as for a file."""
    folder = base / path
    if not folder.is_dir():
        raise _missing(folder, "folder", what)
    return folder


def _missing(path: Path, kind: str, what: str) -> MissingPath:
    there = f"no folder {path.parent}"
    if path.parent.is_dir():
        names = sorted(entry.name for entry in path.parent.iterdir())
        there = f"{path.parent} has {', '.join(names[:10]) or 'nothing'}{nearest(path.name, names)}"
    return MissingPath(f"{path}: no such {kind} ({what}); {there}", what.partition("field ")[2])


@contextmanager
def told_at(where: str) -> Iterator[None]:
    """Let a DataError begin with the source's key path in the recipe, `data.train.0`, and its field; not for ""."""
    try:
        yield
    except DataError as error:
        if not where:
            raise
        field = f".{error.field}" if isinstance(error, MissingPath) and error.field else ""
        raise DataError(f"{where}{field}: {error}") from error


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises DataError with line and column."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text: {error}") from error


def listed(content: Any, key: str | None, file: Path) -> list[Any]:
    """The list under a key of a JSON file, or the file itself where `key` is None. Raises DataError."""
    if key is not None:
        if not isinstance(content, dict) or key not in content:
            found = f"an object with {', '.join(list(content)[:8])}" if isinstance(content, dict) else kind_of(content)
            raise DataError(f"{file}: wanted an object with a list {key!r}, found {found}")
        content = content[key]
    if not isinstance(content, list):
        raise DataError(f"{file}: wanted a list{f' under {key!r}' if key else ''}, found {kind_of(content)}")
    return content


def field(record: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A record's field. Raises BrokenRecord where it is missing, of another type, or a text that is no Unicode."""
    if not isinstance(record, dict):
        raise BrokenRecord(f"wanted an object, found {kind_of(record)}")
    if name not in record:
        raise BrokenRecord(f"no field {name!r}; it has {', '.join(map(str, list(record)[:12])) or 'none'}")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(dict.fromkeys(_NAMES[each] for each in kinds))
        raise BrokenRecord(f"field {name!r}: wanted {wanted}, found {kind_of(value)}")
    if isinstance(value, str):
        _check_unicode(value, name)
    return value


def number(record: Any, name: str) -> int | float:
    """A record's number. Raises BrokenRecord where it has none in that field."""
    return field(record, name, (int, float))


def is_enough(record: Any, least: Least) -> bool:
    """Whether the record has at least these numbers. Raises BrokenRecord where it has none in a field."""
    return all(number(record, name) >= bound for name, bound in least.items())


def captions_of(record: Any, name: str | None = None) -> tuple[str, ...]:
    """The texts of `name`, or of `caption` or `captions`; () where the record has none. Raises BrokenRecord."""
    names = [each for each in ([name] if name else ["caption", "captions"]) if name or each in record]
    if not names:
        return ()
    value = field(record, names[0], (str, list))
    texts = [value] if isinstance(value, str) else value
    for text in texts:
        if not isinstance(text, str):
            raise BrokenRecord(f"field {names[0]!r}: wanted texts, found {kind_of(text)}")
        _check_unicode(text, names[0])
    texts = [text.strip() for text in texts if clean_caption(text)]
    if not texts:
        raise BrokenRecord(f"field {names[0]!r}: the caption is empty")
    return tuple(texts)


def questions_of(record: Any, id: str) -> tuple[Question, ...]:
    """The list `questions`, or the one question of the record itself. Raises BrokenRecord."""
    if "questions" in record:
        return tuple(_question(each, f"{id}/{n}") for n, each in enumerate(field(record, "questions", list)))
    return (_question(record, id),) if "question" in record else ()


EXAMPLE_FIELDS = (
    *("caption", "captions"),
    *("question", "questions", "answer", "answers", "question_id", "id", "kind", "answer_type"),
)
"""The fields that `example_of` reads where no other caption field is named."""


def example_of(record: Any, id: str, image: ImageSource, caption_field: str | None = None) -> Example:
    """An example of a record in limbeck's own fields. Raises BrokenRecord."""
    captions, questions = captions_of(record, caption_field), questions_of(record, id)
    if not captions and not questions:
        raise BrokenRecord(f"no caption, captions, question or questions; it has {', '.join(map(str, record))}")
    return Example(id=id, image=image, captions=captions, questions=questions)


def joined(rows: Sequence[Example]) -> Example:
    """One example of what several rows say and ask about one picture; its id is the first row's."""
    return Example(
        id=rows[0].id,
        image=rows[0].image,
        captions=tuple(caption for row in rows for caption in row.captions),
        questions=tuple(question for row in rows for question in row.questions),
    )


class Pictures:
    """Rows by the picture that they are about, the picture that was seen first in front."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._places: dict[int, int] = {}
        self._rows: list[int] = []
        self._pictures: list[int] = []

    @property
    def full(self) -> bool:
        """Whether there are as many pictures as wanted."""
        return len(self._places) == self._limit

    def add(self, picture: int, row: int) -> bool:
        """Take a row about a picture; False where that would be one picture too many."""
        if self.full and picture not in self._places:
            return False
        self._pictures.append(self._places.setdefault(picture, len(self._places)))
        self._rows.append(row)
        return True

    def rows(self) -> Ragged:
        """The rows of each picture."""
        pictures = np.asarray(self._pictures, np.int64)
        order = np.argsort(pictures, kind="stable")
        starts = np.searchsorted(pictures[order], np.arange(len(self._places) + 1))
        return Ragged(np.asarray(self._rows, np.int64)[order], starts)


def image_file(folder: Path, name: str) -> FileImage:
    """The picture's file. Raises BrokenRecord where it is missing."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise BrokenRecord(f"no picture {path}")
    return FileImage(path)


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, and the value where it is short."""
    text = json.dumps(value, default=str)
    return f"{_NAMES.get(type(value), type(value).__name__)} {text if len(text) <= 40 else text[:37] + '...'}"


_NAMES = {
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "nothing",
}


def _check_unicode(text: str, name: str) -> None:
    """Raise BrokenRecord where a text cannot be encoded: JSON's \\ud83d alone is half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BrokenRecord(
            f"field {name!r}: half a character at {error.start} (a lone surrogate) in {kind_of(text)}"
        ) from error


def _question(record: Any, id: str) -> Question:
    text = field(record, "question", str)
    answers = field(record, "answers", list) if "answers" in record else [field(record, "answer", str)]
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise BrokenRecord(f"field 'answers': wanted a list of texts, found {kind_of(answers)}")
    for answer in answers:
        _check_unicode(answer, "answers")
    given = [record[name] for name in ("question_id", "id") if name in record]
    kind = [record[name] for name in ("kind", "answer_type") if name in record]
    return Question(
        id=str(given[0]) if given else id, text=text, answers=tuple(answers), kind=str(kind[0]) if kind else None
    )
