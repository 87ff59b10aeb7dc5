"""The chosen records, as they stood in their files."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow.parquet as pq

from limbeck.phrases.inputs import LIST_KEY, CaptionRecord, CaptionsConfig, Part, read_part
from limbeck.phrases.json_lists import JsonList


@dataclass(frozen=True)
class Written:
    """One file of chosen records."""

    input: str
    file: str
    records: int


def write_chosen(
    parts: Sequence[Part], captions: Sequence[int], config: CaptionsConfig, chosen: Path, folder: Path
) -> list[Written]:
    """Write each input's chosen records into a file of its own name and format. A record is whole or not there.

    Args:
        captions: how many captions each part has.
        chosen: the Parquet file of chosen captions, in order.
    """
    folder.mkdir(exist_ok=True)
    kept = _kept(parts, captions, config, chosen)
    written = []
    for number, (path, group) in enumerate(groupby(kept, key=lambda entry: entry[0].path)):
        source = Path(path)
        file = folder / f"{number:03d}-{source.name}"
        unfinished = file.with_suffix(f"{file.suffix}.tmp")
        records = (record for _, records in group for record in records)
        write = {".jsonl": _write_lines, ".json": _write_list, ".tar": _write_shard}[source.suffix]
        count = write(source, records, unfinished)
        unfinished.replace(file)
        written.append(Written(path, str(file), count))
    return written


def write_keys(
    parts: Sequence[Part], captions: Sequence[int], config: CaptionsConfig, chosen: Path, folder: Path
) -> list[Written]:
    """Write `keys.jsonl` instead: input and id of every chosen record, in order."""
    file = folder / "keys.jsonl"
    counts: dict[str, int] = {}
    with file.with_suffix(".tmp").open("w", encoding="utf-8") as stream:
        for part, records in _kept(parts, captions, config, chosen):
            counts[part.path] = counts.get(part.path, 0) + len(records)
            for record in records:
                stream.write(json.dumps({"input": part.path, "id": record.id}, ensure_ascii=False) + "\n")
    file.with_suffix(".tmp").replace(file)
    return [Written(path, str(file), count) for path, count in counts.items()]


def _kept(
    parts: Sequence[Part], captions: Sequence[int], config: CaptionsConfig, chosen: Path
) -> Iterator[tuple[Part, list[CaptionRecord]]]:
    """Every part with its records of which a caption is chosen."""
    places = _Places(chosen)
    start = 0
    for part, count in zip(parts, captions, strict=True):
        wanted = {place - start for place in places.below(start + count)}
        records, caption = [], 0
        if wanted:
            for record in read_part(part, config)[0]:
                if any(caption + each in wanted for each in range(len(record.captions))):
                    records.append(record)
                caption += len(record.captions)
        yield part, records
        start += count


class _Places:
    """The chosen captions' places, read as far as they are wanted."""

    def __init__(self, file: Path) -> None:
        batches = pq.ParquetFile(file).iter_batches(batch_size=1 << 16)
        self._places = (place for batch in batches for place in batch.column(0).to_pylist())
        self._next: int | None = next(self._places, None)

    def below(self, end: int) -> Iterator[int]:
        while self._next is not None and self._next < end:
            yield self._next
            self._next = next(self._places, None)


def _write_lines(_: Path, records: Iterator[CaptionRecord], file: Path) -> int:
    count = 0
    with file.open("wb") as stream:
        for record in records:
            stream.write(record.raw if record.raw.endswith(b"\n") else record.raw + b"\n")
            count += 1
    return count


def _write_list(source: Path, records: Iterator[CaptionRecord], file: Path) -> int:
    whole = JsonList(source, LIST_KEY)
    count, end = 0, max((end for _, end in whole.spans()), default=whole.begin)
    with source.open("rb") as old, file.open("wb") as new:
        new.write(old.read(whole.begin))
        for record in records:
            new.write(b",\n" + record.raw if count else b"\n" + record.raw)
            count += 1
        old.seek(end)
        new.write(old.read())
    return count


def _write_shard(source: Path, records: Iterator[CaptionRecord], file: Path) -> int:
    keys = {record.id.removeprefix(f"{source.name}:") for record in records}
    with tarfile.open(source, "r:") as old, tarfile.open(file, "w") as new:
        for member in old:
            folder, _, name = member.name.rpartition("/")
            stem = name.partition(".")[0]
            if member.isfile() and (f"{folder}/{stem}" if folder else stem) in keys:
                new.addfile(member, old.extractfile(member))
    return len(keys)
