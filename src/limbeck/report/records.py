"""Reading a run's JSON and YAML with the checks that make a mistake in it name itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml


class ReportError(ValueError):
    """A file of a run folder says something that the report cannot show."""


@dataclass(frozen=True)
class Record:
    """A JSON object and where it was read, for messages such as `runs/a/log.jsonl line 3, terms.language: ...`."""

    data: Mapping[str, object]
    place: str

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def number(self, key: str) -> float:
        """A required number."""
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number", value)
        return float(value)

    def maybe_number(self, key: str) -> float | None:
        """A number, or None where the key is absent or null."""
        return self.number(key) if key in self else None

    def text(self, key: str) -> str:
        """A required text; a number is written out, because ids may be either."""
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.wrong(key, "a text", value)
        return str(value)

    def maybe_text(self, key: str) -> str | None:
        """A text, or None where the key is absent or null."""
        return self.text(key) if key in self else None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty where the key is absent."""
        items = self._list(key)
        return tuple(Record({str(i): item}, f"{self.place}, {key}").text(str(i)) for i, item in enumerate(items))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers; empty where the key is absent."""
        items = self._list(key)
        return tuple(Record({str(i): item}, f"{self.place}, {key}").number(str(i)) for i, item in enumerate(items))

    def part(self, key: str) -> Record:
        """An object inside this one; empty where the key is absent."""
        value = self.data.get(key)
        if value is None:
            return Record({}, f"{self.place}, {key}")
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object", value)
        return Record({str(name): item for name, item in value.items()}, f"{self.place}, {key}")

    def parts(self, key: str) -> tuple[Record, ...]:
        """A list of objects; empty where the key is absent."""
        items = self._list(key)
        return tuple(Record({str(i): item}, f"{self.place}, {key}").part(str(i)) for i, item in enumerate(items))

    def grid(self, key: str) -> tuple[tuple[float, ...], ...]:
        """Rows of numbers, all of one length; empty where the key is absent."""
        items = self._list(key)
        rows = tuple(Record({str(i): row}, f"{self.place}, {key}").numbers(str(i)) for i, row in enumerate(items))
        if len({len(row) for row in rows}) > 1 or (rows and not rows[0]):
            raise ReportError(
                f"{self.place}, {key}: rows of {[len(row) for row in rows]} numbers, wanted rows of equal length"
            )
        return rows

    def all_numbers(self) -> dict[str, float]:
        """Every value that is a number, by key; what is not a number is left out."""
        return {k: float(v) for k, v in self.data.items() if isinstance(v, int | float) and not isinstance(v, bool)}

    def wrong(self, key: str, wanted: str, found: object) -> ReportError:
        """The error for a value of the wrong kind."""
        shown = "nothing" if found is None else f"{type(found).__name__} {str(found)[:60]!r}"
        return ReportError(f"{self.place}, {key}: wanted {wanted}, found {shown}")

    def _list(self, key: str) -> list[object]:
        value = self.data.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "a list", value)
        return value


def read_object(path: Path) -> Record | None:
    """The JSON object in a file, or None where there is no such file.

    Raises:
        ReportError: the file is not JSON, or not an object.
    """
    return _record(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None


def read_yaml(path: Path) -> Record | None:
    """The YAML object in a file, or None where there is no such file. Raises as `read_object` does."""
    if not path.exists():
        return None
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ReportError(f"{path}: not YAML: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path}: wanted a YAML object, found {type(value).__name__}")
    return Record(value, str(path))


def read_list(path: Path) -> tuple[Record, ...]:
    """The JSON list of objects in a file; empty where there is no such file. Raises as `read_object` does."""
    if not path.exists():
        return ()
    return Record({"list": _parse(path.read_text(encoding="utf-8"), str(path))}, str(path)).parts("list")


def read_lines(path: Path) -> Iterator[Record]:
    """One object a line; nothing where there is no such file. Raises as `read_object` does, and names the line.

    A last line without its line end is one that is still being written, or was torn by a kill: it is left out.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and line.endswith("\n"):
                yield _record(line, f"{path} line {number}")


def _record(text: str, place: str) -> Record:
    value = _parse(text, place)
    if not isinstance(value, dict):
        raise ReportError(f"{place}: wanted a JSON object, found {type(value).__name__}")
    return Record(value, place)


def _parse(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{place}: not JSON: {error}") from error
