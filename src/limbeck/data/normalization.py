"""What pictures are normalised with: an image tower reads them as it was trained, and its folder says how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.examples import DataError
from limbeck.data.records import kind_of, read_json
from limbeck.data.transform import MEAN, STD


@dataclass(frozen=True)
class Normalization:
    """Mean and deviation of the red, green, blue channels, values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def border(self) -> tuple[int, ...]:
        """The colour that fills the sides of a picture, as LLaVA rounds it."""
        return tuple(int(255 * mean) for mean in self.mean)


CLIP = Normalization(MEAN, STD)
NONE = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def read_normalization(folder: Path) -> Normalization:
    """That of a transformers folder's image processor; CLIP's where the folder has none. Raises DataError."""
    values: Any = None
    for name in ("preprocessor_config.json", "processor_config.json"):
        if values is None and (folder / name).is_file():
            read = read_json(folder / name)
            if not isinstance(read, dict):
                raise DataError(f"{folder / name}: wanted an object, found {kind_of(read)}")
            values = read if name.startswith("pre") else read.get("image_processor")
    if values is None:
        return CLIP
    if values.get("do_normalize") is False:
        return NONE
    mean, std = values.get("image_mean", MEAN), values.get("image_std", STD)
    for key, given in (("image_mean", mean), ("image_std", std)):
        if not isinstance(given, list | tuple) or len(given) != 3:
            raise DataError(f"{folder}: its image processor's {key} is {given!r}; wanted three numbers")
    return Normalization(tuple(mean), tuple(std))
