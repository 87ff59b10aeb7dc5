"""What all benchmarks share: an item to answer, the prompts of LLaVA-1.5, and readers whose errors name the place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from pydantic import Field

from limbeck.config import Section
from limbeck.data.example_conversations import SHORT_ANSWER
from limbeck.data.examples import DataError, ImageSource
from limbeck.data.records import BrokenRecord, existing_folder, image_file
from limbeck.evaluation.inputs import Row

LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."


class CommonConfig(Section):
    """Fields of every benchmark. Relative paths start from the recipe's `data.root`."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """of the file of rows and of the entry in the summary; the benchmark's own by default"""
    limit: int | None = Field(default=None, ge=1)
    """use only the first so many, for a look; the score is then no official one"""
    blind: bool = False
    """show no picture: what the language alone answers"""
    temperature: float | None = Field(default=None, ge=0)
    """of sampling in this benchmark; null: that of `answering`"""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to answer."""

    id: str
    prompt: str
    """what the user says; the chat template puts pictures before it"""
    images: tuple[ImageSource, ...]
    """the pictures shown; none for a question of text alone"""
    choices: tuple[str, ...] = ()
    """whole answers, of which the likeliest counts; empty where the model writes one"""
    row: Mapping[str, Any]
    """what scoring needs and people like to read, as JSON"""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What rows are worth."""

    summary: dict[str, Any]
    """the benchmark's figures, in percent unless its rules say otherwise"""
    grades: list[dict[str, Any]]
    """what to note on each row, in the order of the rows"""


def short_answer(question: str) -> str:
    """LLaVA-1.5's prompt for a short answer."""
    return question + SHORT_ANSWER


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """LLaVA-1.5's prompt for a letter."""
    lines = [question, *(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options)), LETTER]
    return "\n".join(lines)


def percent(right: Sequence[float | bool]) -> float:
    """The mean in percent. Raises ValueError where there is nothing."""
    if not right:
        raise ValueError("percent: there is nothing to average")
    return 100 * sum(right) / len(right)


def percent_by(kinds: Sequence[str], right: Sequence[float | bool]) -> dict[str, float]:
    """The mean in percent of each kind, by name."""
    groups: dict[str, list[float | bool]] = {}
    for kind, value in zip(kinds, right, strict=True):
        groups.setdefault(kind, []).append(value)
    return {kind: percent(groups[kind]) for kind in sorted(groups)}


def with_answers(rows: Sequence[Row], key: str = "answer") -> list[Row]:
    """The rows whose right answer is known; those of a secret test split have none."""
    return [row for row in rows if row[key]]


@contextmanager
def reading(file: Path, where: str) -> Iterator[None]:
    """Turn a BrokenRecord into a DataError that says where it stands: an official file has no record to spare."""
    try:
        yield
    except BrokenRecord as error:
        raise DataError(f"{file}:{where}: {error}") from None


def json_lines(file: Path) -> list[tuple[str, Any]]:
    """The records of a JSONL file with their line numbers, for `reading`. Raises DataError."""
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                records.append((str(number), json.loads(line)))
            except json.JSONDecodeError as error:
                raise DataError(f"{file}:{number}: not JSON: {error}") from error
    return records


class Pictures:
    """The folder of a benchmark's pictures, or none where the run is blind."""

    def __init__(self, config: CommonConfig, base: Path, folder: str | None, benchmark: str) -> None:
        if folder is None and not config.blind:
            raise DataError(f"benchmark {benchmark}: give `images`, the folder of its pictures, or set `blind: true`")
        self._folder = None
        if folder is not None and not config.blind:
            self._folder = existing_folder(base, folder, f"benchmark {benchmark}, field images")

    def of(self, name: str) -> tuple[ImageSource, ...]:
        """The picture of that name, or nothing on a blind run. Raises BrokenRecord where the file is missing."""
        return () if self._folder is None else (image_file(self._folder, name),)
