"""Files of captions in parts: what one process reads, writes and loses at most when it is killed.

A part is so many records of a JSON Lines file or JSON list, or a whole WebDataset shard. Its records are read twice:
for their phrases, and when the chosen ones are written. Pictures need not be there, except inside shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.config import Section
from limbeck.data.examples import DataError, Skipped
from limbeck.data.records import BrokenRecord, captions_of, existing_file, field, kind_of
from limbeck.data.shards import WebDatasetConfig, expand_braces, load_webdataset
from limbeck.phrases.json_lists import JsonList, split

LIST_KEY = "images"
"""where Karpathy's files have their list"""


class CaptionsConfig(Section):
    """Which captions are read; together with the spaCy pipeline, all that phrases depend on."""

    inputs: list[str] = Field(min_length=1)
    """.jsonl, .json (LLaVA's, LAVIS' and BLIP's lists, Karpathy's files) and .tar; patterns with braces for shards"""
    caption_field: str | None = None
    """instead of `caption` or `captions`, the answers in `conversations`, or `raw` of `sentences`"""
    where: dict[str, str] = Field(default_factory=dict)
    """only records with these field values, e.g. {split: train}; not for shards"""
    part_records: int = Field(default=4096, ge=1)
    """records of a part; a shard is always one"""


@dataclass(frozen=True)
class Part:
    """A piece of one input."""

    number: int
    """its place among all parts of all inputs"""
    path: str
    kind: Literal["lines", "list", "shard"]
    first: int
    """place of its first record in the file"""
    start: int
    end: int
    """bytes from and to; of a shard, all"""


@dataclass(frozen=True)
class CaptionRecord:
    """One record as it stands in the file."""

    id: str
    captions: tuple[str, ...]
    raw: bytes
    """its JSON; empty for a shard's"""


def input_files(config: CaptionsConfig, base: Path = Path()) -> list[Path]:
    """All input files in order, patterns expanded. Raises DataError where one is missing or given twice."""
    names = [name for pattern in config.inputs for name in expand_braces(pattern)]
    files = [existing_file(base, name, "captions to filter") for name in names]
    twice = [str(file) for number, file in enumerate(files) if file in files[:number]]
    if twice:
        raise DataError(f"{twice[0]}: given twice; its captions would count twice")
    for file in files:
        if file.suffix not in (".jsonl", ".json", ".tar"):
            raise DataError(f"{file}: captions are read from .jsonl, .json and .tar, not from {file.suffix or 'this'}")
        if file.suffix == ".tar" and (config.where or config.caption_field):
            raise DataError(f"{file}: `where` and `caption_field` are for JSON records, not for shards")
    return files


def plan(files: Sequence[Path], part_records: int) -> list[Part]:
    """The parts of all files. Reads each file once, and keeps nothing of it. Raises DataError."""
    parts: list[Part] = []
    for file in files:
        if file.suffix == ".tar":
            parts.append(Part(len(parts), str(file), "shard", 0, 0, file.stat().st_size))
            continue
        kind, spans = ("lines", _lines(file)) if file.suffix == ".jsonl" else ("list", JsonList(file, LIST_KEY).spans())
        first = start = end = count = 0
        for number, (from_byte, to_byte) in enumerate(spans):
            if count == part_records:
                parts.append(Part(len(parts), str(file), kind, first, start, end))
                count = 0
            if count == 0:
                first, start = number, from_byte
            end, count = to_byte, count + 1
        if count:
            parts.append(Part(len(parts), str(file), kind, first, start, end))
    if not parts:
        raise DataError(f"{', '.join(map(str, files))}: no record in it")
    return parts


def read_part(part: Part, config: CaptionsConfig) -> tuple[list[CaptionRecord], list[Skipped]]:
    """The part's records that have captions and are wanted, and those that are broken. Raises DataError."""
    if part.kind == "shard":
        return _read_shard(Path(part.path))
    found, skipped = [], []
    for number, raw in enumerate(_raw(part), start=part.first):
        if not raw.strip():
            continue
        where = f"{part.path}:{number + 1}" if part.kind == "lines" else f"{part.path}[{number}]"
        try:
            record = _record(raw)
            if all(str(field(record, name, (str, int))) == value for name, value in config.where.items()):
                found.append(CaptionRecord(_id(record, where), _captions(record, config.caption_field), raw))
        except BrokenRecord as error:
            skipped.append(Skipped(where, str(error)))
    return found, skipped


def _read_shard(file: Path) -> tuple[list[CaptionRecord], list[Skipped]]:
    source = load_webdataset(WebDatasetConfig(source="webdataset", shards=file.name, max_skipped=1.0), file.parent)
    records = [CaptionRecord(each.id, each.captions, b"") for each in source.examples if each.captions]
    silent = [Skipped(each.id, "no caption") for each in source.examples if not each.captions]
    return records, [*source.skipped, *silent]


def _lines(file: Path) -> Iterator[tuple[int, int]]:
    end = 0
    with file.open("rb") as stream:
        for line in stream:
            start, end = end, end + len(line)
            yield start, end


def _raw(part: Part) -> Iterator[bytes]:
    with Path(part.path).open("rb") as stream:
        stream.seek(part.start)
        text = stream.read(part.end - part.start)
    yield from text.splitlines(keepends=True) if part.kind == "lines" else split(text)


def _record(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenRecord(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BrokenRecord(f"wanted an object, found {kind_of(record)}")
    return record


def _id(record: dict[str, Any], where: str) -> str:
    for name in ("id", "filename"):
        if name in record:
            return str(record[name])
    return where


def _captions(record: dict[str, Any], name: str | None) -> tuple[str, ...]:
    if name is None and "conversations" in record:
        turns = field(record, "conversations", list)
        texts: Any = [field(turn, "value", str) for turn in turns if field(turn, "from", str) == "gpt"]
    elif name is None and "sentences" in record:
        texts = [field(sentence, "raw", str) for sentence in field(record, "sentences", list)]
    else:
        captions = captions_of(record, name)
        if not captions:
            raise BrokenRecord(f"no caption, captions, conversations or sentences; it has {', '.join(record)}")
        return captions
    return captions_of({"captions": texts})
