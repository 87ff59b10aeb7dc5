"""WebDataset shards: tar files whose members `key.jpg` and `key.txt` or `key.json` make an example.

Shards are indexed once by member offsets and then read in place: nothing is unpacked, so no member name ever becomes a
path, and examples stay addressable by number.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as member_field
from itertools import product
from pathlib import Path
from typing import Literal

from limbeck.data.examples import ArchiveImage, DataError, Example, Skipped, Source, check_skipped
from limbeck.data.records import BrokenRecord, FilesConfig, example_of, existing_file, kind_of

IMAGES = ("jpg", "jpeg", "png", "webp")
_MAX_TEXT = 1 << 20
"""bytes of a txt or json member; more is no caption"""


class WebDatasetConfig(FilesConfig):
    """Uncompressed tar shards."""

    source: Literal["webdataset"]
    shards: str
    """a tar file, or a pattern with braces: train-{000000..000012}.tar, {a,b}.tar"""


@dataclass
class _Sample:
    image: ArchiveImage | None = None
    texts: dict[str, bytes] = member_field(default_factory=dict)
    reason: str | None = None


def load_webdataset(config: WebDatasetConfig, base: Path) -> Source:
    """Index all shards. Raises DataError."""
    examples: list[Example] = []
    skipped: list[Skipped] = []
    for name in expand_braces(config.shards):
        shard = existing_file(base, name, "source webdataset, field shards")
        for key, sample in _samples(shard, skipped):
            try:
                examples.append(_example(f"{name}:{key}", sample))
            except BrokenRecord as error:
                skipped.append(Skipped(f"{shard}:{key}", str(error)))
            if len(examples) == config.limit:
                break
        if len(examples) == config.limit:
            break
    check_skipped(skipped, len(examples) + len(skipped), config.max_skipped, config.shards)
    if not examples:
        raise DataError(f"{config.shards}: no member pair like key.jpg and key.txt in it")
    return Source(name=config.shards, examples=examples, skipped=tuple(skipped))


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


def _samples(shard: Path, skipped: list[Skipped]) -> Iterator[tuple[str, _Sample]]:
    """Members of a shard by key: the name up to its first dot, its folder included."""
    samples: dict[str, _Sample] = {}
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                extension = extension.lower()
                if not member.isfile() or extension not in (*IMAGES, "txt", "json"):
                    continue
                sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
                if extension in IMAGES:
                    sample.image = ArchiveImage(str(shard), member.name, member.offset_data, member.size)
                elif member.size > _MAX_TEXT:
                    sample.reason = f"{member.name} has {member.size} bytes, too many for a caption"
                else:
                    file = tar.extractfile(member)
                    sample.texts[extension] = file.read() if file else b""
    except tarfile.TarError as error:
        if end == 0:
            raise DataError(f"{shard}: not an uncompressed tar file: {error}") from error
        skipped.append(Skipped(str(shard), f"damaged after byte {end}: {error}"))
    else:
        with shard.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                skipped.append(Skipped(str(shard), f"damaged after byte {end}: no tar header there"))
    yield from samples.items()


def _example(id: str, sample: _Sample) -> Example:
    if sample.reason:
        raise BrokenRecord(sample.reason)
    if sample.image is None:
        raise BrokenRecord(f"no picture ({', '.join(IMAGES)}) beside {', '.join(sample.texts)}")
    if not sample.texts:
        raise BrokenRecord("no txt or json beside the picture")
    try:
        record = json.loads(sample.texts["json"]) if "json" in sample.texts else {}
        if not isinstance(record, dict):
            raise BrokenRecord(f"json: wanted an object, found {kind_of(record)}")
        if "txt" in sample.texts:
            record = {name: value for name, value in record.items() if name != "captions"}
            record["caption"] = sample.texts["txt"].decode("utf-8")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenRecord(f"text: {error}") from error
    return example_of(record, id, sample.image)
