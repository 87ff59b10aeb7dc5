"""Phrases of one part in a Parquet file of its own, which is there whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.data.examples import DataError, Skipped
from limbeck.phrases.inputs import CaptionsConfig, Part, read_part
from limbeck.phrases.nouns import NounPhrases, fingerprint

_SCHEMA = pa.schema([("part", pa.int32()), ("caption", pa.int32()), ("phrase", pa.string())])
_NOTE = b"limbeck"
_LISTED = 100
"""broken records that a part tells of; all of them are counted"""


@dataclass(frozen=True)
class PartDone:
    """What a finished part says of itself."""

    part: Part
    records: int
    captions: int
    phrases: int
    """rows: phrases of a caption, each once"""
    broken: int
    skipped: tuple[Skipped, ...]
    """the first broken records"""
    seconds: float
    """time of its process"""


class Extractor:
    """Writes parts. One for each process, whose spaCy it holds."""

    def __init__(self, config: CaptionsConfig, pipeline: str | None, wanted: Mapping[str, str], folder: Path) -> None:
        """`wanted` is the fingerprint that all parts share. Raises DataError where this machine's differs."""
        self._config, self._folder = config, folder
        self._phrases = NounPhrases(pipeline)
        if (found := fingerprint(pipeline)) != wanted:
            raise DataError(f"phrases are wanted of {dict(wanted)}, and this process has {found}")

    def __call__(self, part: Part) -> PartDone:
        """Find the phrases of a part and write them. Raises DataError."""
        start = time.perf_counter()
        records, skipped = read_part(part, self._config)
        found = self._phrases([caption for record in records for caption in record.captions])
        captions = [number for number, phrases in enumerate(found) for _ in phrases]
        rows = [phrase for phrases in found for phrase in sorted(phrases)]
        table = pa.table([[part.number] * len(rows), captions, rows], schema=_SCHEMA)
        done = PartDone(
            part=part,
            records=len(records),
            captions=len(found),
            phrases=len(rows),
            broken=len(skipped),
            skipped=tuple(skipped[:_LISTED]),
            seconds=time.perf_counter() - start,
        )
        file = part_file(self._folder, part)
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        pq.write_table(table.replace_schema_metadata({_NOTE: json.dumps(asdict(done)).encode()}), unfinished)
        unfinished.replace(file)
        return done


def part_done(stored: Mapping[str, Any]) -> PartDone:
    """The record that `asdict` made a dictionary of."""
    skipped = tuple(Skipped(**each) for each in stored["skipped"])
    return PartDone(**{**stored, "part": Part(**stored["part"]), "skipped": skipped})


def part_file(folder: Path, part: Part) -> Path:
    """Where a part's phrases go."""
    return folder / f"{part.number:06d}.parquet"


def finished_part(folder: Path, part: Part) -> PartDone | None:
    """What a part that is already there says of itself; None where it is missing. Raises DataError."""
    file = part_file(folder, part)
    if not file.is_file():
        return None
    try:
        done = part_done(json.loads(pq.read_schema(file).metadata[_NOTE]))
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: no part of this filter ({error}); remove it, and the same command makes it"
        ) from error
    if done.part != part:
        raise DataError(f"{file}: holds {done.part}, wanted {part}; remove it, and the same command makes it")
    return done
