"""What every source gives: examples, pictures that open on demand, and the record of what had to be skipped."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image, ImageOps

from limbeck.errors import WrongInput


class DataError(WrongInput):
    """Data that cannot be used as the recipe asks; the message names file, place, finding and what would be right."""


class BrokenImage(DataError):
    """One picture that does not decode. The dataset turns it into a `Skipped`."""


@dataclass(frozen=True)
class FileImage:
    """A picture in a file of its own."""

    path: str

    @property
    def key(self) -> str:
        """Equal for two examples exactly where they show the same picture."""
        return self.path

    def open(self) -> Image.Image:
        """The picture as RGB. Raises BrokenImage."""
        return decode(self.path, self.path)


@dataclass(frozen=True)
class ArchiveImage:
    """A picture inside an uncompressed archive: `size` bytes from `offset`."""

    archive: str
    member: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """Equal for two examples exactly where they show the same picture."""
        return f"{self.archive}#{self.offset}"

    def open(self) -> Image.Image:
        """The picture as RGB. Raises BrokenImage."""
        name = f"{self.archive}:{self.member}"
        try:
            with Path(self.archive).open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise BrokenImage(f"{name}: {error}") from error
        return decode(io.BytesIO(data), name)


@dataclass(frozen=True)
class MadeImage:
    """A picture that a function makes when it is wanted (drawn, or decoded from a table)."""

    key: str
    """equal for two examples exactly where they show the same picture"""
    make: Callable[[], Image.Image]
    """gives RGB; raises BrokenImage where it decodes something broken"""

    def open(self) -> Image.Image:
        """The picture as RGB. Raises BrokenImage."""
        return self.make()


ImageSource = FileImage | ArchiveImage | MadeImage
"""Where a picture comes from. All kinds have `key` and `open()`."""


@dataclass(frozen=True)
class Question:
    """A question about a picture with everyone's answers (ten people's in VQAv2, one exact answer in scenes)."""

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str | None = None


@dataclass(frozen=True)
class Example:
    """One picture with what is said and asked about it."""

    id: str
    image: ImageSource
    captions: tuple[str, ...]
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A record or picture that was left out."""

    id: str
    """where it stands: a file and line, a picture's path, a shard's member"""
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


@dataclass(frozen=True)
class Source:
    """Examples by index, so that resuming is exact and processes can share them; and what was skipped on the way."""

    name: str
    examples: Sequence[Example]
    skipped: tuple[Skipped, ...] = ()


class Examples(Sequence[Example], ABC):
    """A sequence that makes each example when it is asked for."""

    @abstractmethod
    def at(self, index: int) -> Example:
        """The example at 0 <= index < len."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self.at(each) for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        return self.at(index % len(self))


class Joined(Examples):
    """Several sequences of examples, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Example]]) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, index: int) -> Example:
        """The example at 0 <= index < len."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part][index - int(self._starts[part])]


def check_skipped(
    skipped: Sequence[Skipped], total: int, limit: float, where: str, *, count: int | None = None
) -> None:
    """Raise DataError, listing the first ones, where more than the share `limit` of `total` records was skipped.

    `count` says how many were, where `skipped` lists only some of them.
    """
    count = len(skipped) if count is None else count
    if count <= limit * total:
        return
    first = "\n".join(f"  {entry}" for entry in skipped[:10])
    more = f"\n  ... and {count - 10} more" if count > 10 else ""
    raise DataError(
        f"{where}: {count} of {total} records are broken, more than the {limit:.1%} that max_skipped allows:\n"
        f"{first}{more}"
    )


def number_of(text: str) -> int:
    """A non-negative int64 that stands for a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy as RGB: 16 bits as 8, transparency over white. Raises ValueError where pixels have no known range."""
    if image.mode == "RGB":
        return image.copy()
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels are numbers of more than 16 bits, whose white is not known")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are fractions, whose white is not known; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def decode(file: str | io.BytesIO, name: str) -> Image.Image:
    """A stored picture as RGB, turned as its EXIF orientation says. Raises BrokenImage."""
    try:
        with Image.open(file) as image:
            _turn(image)
            return to_rgb(image)
    except Exception as error:  # damaged files make Pillow raise OSError, SyntaxError, ValueError, TypeError and more
        raise BrokenImage(f"{name}: {error or type(error).__name__}") from error


def _turn(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a damaged EXIF block, of which Pillow raises as many kinds, says nothing of the picture's top
        return
