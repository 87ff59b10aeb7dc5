"""JSONL and a folder of pictures: each line has `image` and `caption`, `captions`, `question` or `questions`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from limbeck.data.examples import DataError, Example, Examples, Skipped, Source, check_skipped, number_of
from limbeck.data.records import (
    BrokenRecord,
    FilesConfig,
    Least,
    Pictures,
    example_of,
    existing_file,
    existing_folder,
    field,
    image_file,
    is_enough,
    joined,
    kind_of,
)


class JsonlConfig(FilesConfig):
    """One JSON object per line. Lines stay on disk and are read again when wanted."""

    source: Literal["jsonl"]
    path: str
    """the .jsonl file"""
    images: str | None = None
    """folder that the `image` fields start from; the file's own by default"""
    where: dict[str, str] = Field(default_factory=dict)
    """only records with these field values, e.g. {split: train}"""
    least: Least = Field(default_factory=dict)
    """only records with at least these numbers, e.g. {similarity: 0.28}"""
    image_field: str = "image"
    caption_field: str | None = None
    """instead of `caption` or `captions`"""


def load_jsonl(config: JsonlConfig, base: Path) -> Source:
    """One example per picture, lines about the same picture taken together. Raises DataError.

    Every line is checked, and where it starts is remembered.
    """
    file = existing_file(base, config.path, "source jsonl, field path")
    folder = existing_folder(base, config.images, "source jsonl, field images") if config.images else file.parent
    lines, pictures = _Lines(file, folder, config), Pictures(config.limit)
    offsets, numbers, skipped, offset = [], [], [], 0
    values: dict[str, set[str]] = {name: set() for name in config.where}
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                record = lines.record(line)
                if not (_chosen(record, config.where, values) and is_enough(record, config.least)):
                    continue
                example = lines.example(record, number)
            except BrokenRecord as error:
                if not pictures.full:
                    skipped.append(Skipped(f"{file}:{number}", str(error)))
                continue
            if not pictures.add(number_of(example.image.key), len(offsets)):
                break
            offsets.append(start)
            numbers.append(number)
    check_skipped(skipped, len(offsets) + len(skipped), config.max_skipped, str(file))
    if not offsets:
        found = "; ".join(f"{name} is {', '.join(sorted(seen)[:8])}" for name, seen in values.items())
        wanted = [f"with {config.where}"] if config.where else []
        wanted += [f"with at least {config.least}"] if config.least else []
        raise DataError(f"{file}: no record {' and '.join(wanted) or 'in it'}{f': {found}' if found else ''}")
    lines.choose(offsets, numbers, pictures)
    return Source(name=str(config.path), examples=lines, skipped=tuple(skipped))


class _Lines(Examples):
    def __init__(self, file: Path, folder: Path, config: JsonlConfig) -> None:
        self._file = file
        self._folder = folder
        self._config = config
        self.choose([], [], Pictures(None))

    def choose(self, offsets: list[int], numbers: list[int], pictures: Pictures) -> None:
        """Say where the chosen lines start, their line numbers, and which are about one picture."""
        self._offsets = np.asarray(offsets, np.int64)
        self._numbers = np.asarray(numbers, np.int64)
        self._rows = pictures.rows()

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, index: int) -> Example:
        """The example at 0 <= index < len."""
        examples = []
        with self._file.open("rb") as stream:
            for row in self._rows[index]:
                stream.seek(int(self._offsets[row]))
                examples.append(self.example(self.record(stream.readline()), int(self._numbers[row])))
        return joined(examples)

    def record(self, line: bytes) -> dict[str, Any]:
        """The object of a line. Raises BrokenRecord."""
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BrokenRecord(f"not JSON: {error}") from error
        if not isinstance(record, dict):
            raise BrokenRecord(f"wanted an object, found {kind_of(record)}")
        return record

    def example(self, record: dict[str, Any], number: int) -> Example:
        """The example of a line. Raises BrokenRecord."""
        image = image_file(self._folder, field(record, self._config.image_field, str))
        id = str(record["id"]) if "id" in record else f"{self._config.path}:{number}"
        return example_of(record, id, image, self._config.caption_field)


def _chosen(record: dict[str, Any], where: dict[str, str], values: dict[str, set[str]]) -> bool:
    """Whether the record's fields are as wanted; notes the values seen for the error message."""
    for name, wanted in where.items():
        value = str(field(record, name, (str, int)))
        values[name].add(value)
        if value != wanted:
            return False
    return True
