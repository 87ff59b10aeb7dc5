"""What is in a tar shard, in flat arrays of about a hundred bytes an example; kept in files, so that it is read once.

Such a file holds numbers and texts alone (`.npz` without pickled objects). It is called by the shard's path and counts
only while the shard's size and time of change are what they were.
"""

from __future__ import annotations

import json
import logging
import os
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as member_field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.data.encoding import Ragged
from limbeck.data.examples import ArchiveImage, DataError, Example
from limbeck.data.records import EXAMPLE_FIELDS, BrokenRecord, example_of, kind_of, number

log = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")
_MAX_TEXT = 1 << 20
"""bytes of a txt or json member; more is no caption"""
_VERSION = 2
"""Of the files. Another number makes all of them anew."""


class Broken(NamedTuple):
    """A record that makes no example, or the damage of a shard."""

    key: str | None
    """the record's; None where it is the shard that is damaged"""
    reason: str
    before: int
    """whole examples that stand before it"""


@dataclass(frozen=True)
class ShardIndex:
    """A shard's whole examples in their order, and what is broken in it."""

    places: np.ndarray
    """unsigned [N, 2]: where each picture starts in the shard, and how many bytes it has"""
    names: Ragged
    """uint8, by example: the name of the picture's member"""
    records: Ragged
    """uint8, by example: a JSON object of EXAMPLE_FIELDS and of the numbers that were asked for"""
    broken: tuple[Broken, ...]

    def __len__(self) -> int:
        return len(self.places)

    def record(self, row: int) -> dict[str, Any]:
        """What was kept of the record at 0 <= row < len."""
        return json.loads(self.records[row].tobytes())

    def example(self, row: int, shard: Path, name: str) -> Example:
        """The example at 0 <= row < len of this shard, whose id begins with the shard's `name`."""
        member = self.names[row].tobytes().decode("utf-8", "surrogateescape")
        offset, size = map(int, self.places[row])
        image = ArchiveImage(str(shard), member, offset, size)
        return example_of(self.record(row), f"{name}:{_key(member)}", image)


class IndexFiles:
    """The indexes of shards in a folder, a file each; None keeps none.

    A folder that cannot be written is no error: it is told once, and nothing more is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def index(self, shard: Path, numbers: Sequence[str] = ()) -> ShardIndex:
        """The shard's index with these `numbers`, from its file where there is one and the shard is unchanged.

        Raises DataError.
        """
        if self._folder is None:
            return read_shard(shard, numbers)
        path, found = str(shard.resolve()), shard.stat()
        stamp = json.dumps([_VERSION, path, found.st_size, found.st_mtime_ns, *numbers]).encode()
        name = os.fsencode("\0".join((path, *numbers)))
        file = self._folder / f"{blake2b(name, digest_size=16).hexdigest()}.npz"
        index = _stored(file, stamp)
        if index is None:
            index = read_shard(shard, numbers)
            try:
                _store(file, stamp, index)
            except OSError as error:
                log.warning("indexes of shards are not kept (%s); LIMBECK_CACHE names another folder", error)
                self._folder = None
        return index


def index_folder() -> Path:
    """Where indexes are kept: `shards` in $LIMBECK_CACHE, else in `limbeck` of the user's cache folder."""
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("LIMBECK_CACHE") or os.path.join(users, "limbeck")) / "shards"


def read_shard(shard: Path, numbers: Sequence[str] = ()) -> ShardIndex:
    """Go through a shard, whose records must have these `numbers`, which are kept.

    Raises DataError where it is no uncompressed tar file.
    """
    places, names, records = [], [], []
    samples, damage = _samples(shard)
    broken = [Broken(None, damage, 0)] if damage else []
    for key, sample in samples.items():
        try:
            image, record = _checked(sample)
            example_of(record, key, image)
            kept = {name: record[name] for name in EXAMPLE_FIELDS if name in record}
            kept |= {name: number(record, name) for name in numbers}
        except BrokenRecord as error:
            broken.append(Broken(key, str(error), len(places)))
            continue
        places.append((image.offset, image.size))
        names.append(image.member.encode("utf-8", "surrogateescape"))
        records.append(json.dumps(kept, separators=(",", ":")).encode())
    where = _small(np.asarray(places, np.int64).reshape(-1, 2))
    return ShardIndex(where, _ragged(names), _ragged(records), tuple(broken))


@dataclass
class _Sample:
    image: ArchiveImage | None = None
    texts: dict[str, bytes] = member_field(default_factory=dict)
    reason: str | None = None


def _samples(shard: Path) -> tuple[dict[str, _Sample], str | None]:
    """Members of a shard by key, and where it is damaged, if it is. Raises DataError."""
    samples: dict[str, _Sample] = {}
    end, damage = 0, None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                extension = member.name.rpartition("/")[2].partition(".")[2].lower()
                if not member.isfile() or extension not in (*IMAGES, "txt", "json"):
                    continue
                sample = samples.setdefault(_key(member.name), _Sample())
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
        damage = f"damaged after byte {end}: {error}"
    else:
        with shard.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                damage = f"damaged after byte {end}: no tar header there"
    return samples, damage


def _key(member: str) -> str:
    """A member's name up to its first dot, its folder included."""
    folder, _, name = member.rpartition("/")
    stem = name.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def _checked(sample: _Sample) -> tuple[ArchiveImage, dict[str, Any]]:
    """The picture and the record of a sample that has both. Raises BrokenRecord."""
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
    return sample.image, record


def _stored(file: Path, stamp: bytes) -> ShardIndex | None:
    """The index of a file, None where there is none or it is about something else."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            if stored["stamp"].tobytes() != stamp:
                return None
            names = Ragged(stored["names"], stored["name_starts"])
            records = Ragged(stored["records"], stored["record_starts"])
            broken = tuple(Broken(*entry) for entry in json.loads(stored["broken"].tobytes()))
            return ShardIndex(stored["places"], names, records, broken)
    except Exception:  # numpy and zipfile raise a dozen kinds for damaged files; the index is then made anew
        return None


def _store(file: Path, stamp: bytes, index: ShardIndex) -> None:
    """Write a file whole or not at all. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(
                stream,
                stamp=np.frombuffer(stamp, np.uint8),
                places=index.places,
                names=index.names.flat,
                name_starts=index.names.starts,
                records=index.records.flat,
                record_starts=index.records.starts,
                broken=np.frombuffer(json.dumps(index.broken).encode(), np.uint8),
            )
        os.replace(draft, file)
    except BaseException:
        os.unlink(draft)
        raise


def _ragged(texts: list[bytes]) -> Ragged:
    return Ragged(np.frombuffer(b"".join(texts), np.uint8), _small(np.cumsum([0, *map(len, texts)])))


def _small(numbers: np.ndarray) -> np.ndarray:
    """Numbers of at least 0 in the fewest bytes that hold them all."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
