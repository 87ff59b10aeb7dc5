"""WebDataset shards: tar files whose members `key.jpg` and `key.txt` or `key.json` make an example.

Shards are indexed once by member offsets and then read in place: nothing is unpacked, so no member name ever becomes a
path, and examples stay addressable by number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from limbeck.data.examples import DataError, Example, Examples, Skipped, Source, check_skipped
from limbeck.data.records import FilesConfig, Least, existing_file, is_enough
from limbeck.data.shard_index import IndexFiles, ShardIndex


class WebDatasetConfig(FilesConfig):
    """Uncompressed tar shards."""

    source: Literal["webdataset"]
    shards: str
    """a tar file, or a pattern with braces: train-{000000..000012}.tar, {a,b}.tar"""
    least: Least = Field(default_factory=dict)
    """only examples whose JSON has at least these numbers, e.g. {similarity: 0.28, width: 200}"""


def load_webdataset(config: WebDatasetConfig, base: Path, indexes: Path | None = None) -> Source:
    """Index all shards; in the folder `indexes`, where one is given, what is found is kept. Raises DataError."""
    files, shards, skipped, count = IndexFiles(indexes), [], [], 0
    for name in expand_braces(config.shards):
        path = existing_file(base, name, "source webdataset, field shards")
        index = files.index(path, sorted(config.least))
        rows = _chosen(index, config.least, len(index) if config.limit is None else config.limit - count)
        shards.append(_Shard(name, path, index, rows))
        count += len(rows)
        last = rows[-1] if count == config.limit else len(index)
        skipped += [
            Skipped(str(path) if entry.key is None else f"{path}:{entry.key}", entry.reason)
            for entry in index.broken
            if entry.before <= last
        ]
        if count == config.limit:
            break
    check_skipped(skipped, count + len(skipped), config.max_skipped, config.shards)
    if not count:
        wanted = f" with at least {config.least}" if config.least else ""
        raise DataError(f"{config.shards}: no member pair like key.jpg and key.txt{wanted} in it")
    return Source(name=config.shards, examples=_Shards(shards), skipped=tuple(skipped))


def _chosen(index: ShardIndex, least: Least, most: int) -> range | np.ndarray:
    """The first rows with enough in them, `most` of them at most."""
    if not least:
        return range(min(len(index), most))
    enough = (row for row in range(len(index)) if is_enough(index.record(row), least))
    return np.fromiter(islice(enough, most), np.int64)


@dataclass(frozen=True)
class _Shard:
    name: str
    """as the pattern calls it"""
    path: Path
    index: ShardIndex
    rows: range | np.ndarray
    """its examples that are wanted"""


class _Shards(Examples):
    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards = shards
        self._starts = np.cumsum([0, *(len(shard.rows) for shard in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, index: int) -> Example:
        """The example at 0 <= index < len."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard = self._shards[number]
        row = int(shard.rows[index - int(self._starts[number])])
        return shard.index.example(row, shard.path, shard.name)


def expand_braces(pattern: str) -> list[str]:
    """ "a-{0..2}.tar" -> a-0.tar, a-1.tar, a-2.tar; "{a,b}.tar" -> a.tar, b.tar. Raises DataError."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if number % 2 == 0 else _choices(part, pattern) for number, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        first, last = numbers.groups()
        if int(first) <= int(last):
            return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif "," in inside:
        return inside.split(",")
    raise DataError(f"shards: {pattern!r}: {{{inside}}} is neither a range like {{000..012}} nor a list like {{a,b}}")
