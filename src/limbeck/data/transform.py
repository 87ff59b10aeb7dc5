"""Pictures to uint8 arrays of one size, and captions to plain words. All chance comes from an explicit generator.

Training as BLIP does it: random resized crop, flip, RandAugment(2, 5). Evaluation: resize, not keeping the aspect.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import Field

from limbeck.config import Section

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of the red, green, blue channels in CLIP's training pictures, values from 0 to 1."""
STD = (0.26862954, 0.26130258, 0.27577711)
GREY = (128, 128, 128)
"""Fills what a shear, shift or rotation uncovers."""


class TransformConfig(Section):
    """How a picture becomes the model's input. Without crop, flip and RandAugment it is the evaluation transform."""

    size: int = Field(default=224, ge=16)
    """pixels a side"""
    crop: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """random resized crop: smallest and largest share of the area, (0.2, 1) to pre-train, (0.5, 1) to fine-tune"""
    flip: bool = False
    """mirror every other picture; it falsifies "left" and "right" in captions"""
    randaugment: bool = False
    """two operations of strength 5 of 10"""

    @property
    def is_deterministic(self) -> bool:
        """Whether a picture always gives the same array."""
        return self.crop is None and not self.flip and not self.randaugment

    def evaluation(self) -> TransformConfig:
        """The same size without chance."""
        return TransformConfig(size=self.size)


def transform(image: Image.Image, config: TransformConfig, rng: random.Random) -> np.ndarray:
    """An RGB picture as uint8 [3, size, size]."""
    if config.crop is None:
        if image.size != (config.size, config.size):
            image = image.resize((config.size, config.size), Image.Resampling.BICUBIC)
    else:
        image = random_resized_crop(image, config.size, config.crop, rng)
    if config.flip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if config.randaugment:
        image = randaugment(image, rng)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def random_resized_crop(image: Image.Image, size: int, scale: tuple[float, float], rng: random.Random) -> Image.Image:
    """A part of the picture with a random share of its area and a random aspect, resized to a square (Inception's)."""
    narrow, wide = 3 / 4, 4 / 3
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            break
    else:  # a picture so long that no draw fitted: its middle, with the nearest aspect allowed
        w, h = min(width, round(height * wide)), min(height, round(width / narrow))
        left, top = (width - w) // 2, (height - h) // 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def randaugment(image: Image.Image, rng: random.Random, operations: int = 2, strength: int = 5) -> Image.Image:
    """RandAugment with the operations that BLIP leaves in; each of those drawn is applied every other time."""
    names = tuple(AUGMENTATIONS)
    for _ in range(operations):
        name = names[int(rng.random() * len(names))]
        if rng.random() < 0.5:
            image = AUGMENTATIONS[name](image, strength / 10, rng)
    return image


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    )


def _signed(value: float, rng: random.Random) -> float:
    return value if rng.random() < 0.5 else -value


AUGMENTATIONS: dict[str, Callable[[Image.Image, float, random.Random], Image.Image]] = {
    "identity": lambda image, strength, rng: image,
    "autocontrast": lambda image, strength, rng: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, rng: ImageOps.equalize(image),
    "brightness": lambda image, strength, rng: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * strength),
    "sharpness": lambda image, strength, rng: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * strength),
    "shear_x": lambda image, strength, rng: _affine(image, 1, _signed(0.3 * strength, rng), 0, 0, 1, 0),
    "shear_y": lambda image, strength, rng: _affine(image, 1, 0, 0, _signed(0.3 * strength, rng), 1, 0),
    "translate_x": lambda image, strength, rng: _affine(image, 1, 0, _signed(10 * strength, rng), 0, 1, 0),
    "translate_y": lambda image, strength, rng: _affine(image, 1, 0, 0, 0, 1, _signed(10 * strength, rng)),
    "rotate": lambda image, strength, rng: image.rotate(
        _signed(30 * strength, rng), Image.Resampling.BILINEAR, fillcolor=GREY
    ),
}
"""Operations by name; strength goes from 0 to 1 (brightness and sharpness are unchanged at 0.5)."""

_DROPPED = re.compile(r"[.!\"()*#:;~]")


def clean_caption(text: str, max_words: int = 30) -> str:
    """A caption or question as BLIP reads it: lower case, without `.!"()*#:;~`, at most `max_words` words."""
    return " ".join(_DROPPED.sub(" ", text.lower()).split()[:max_words])


def clean_answer(text: str) -> str:
    """An answer as a model learns it: lower case, single blanks, its punctuation kept (2.5, 10:30)."""
    return " ".join(text.lower().split())
