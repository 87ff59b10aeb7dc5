"""`builtin:scenes`: small pictures of one to four emoji things on a tinted canvas, all facts about them known.

A scene is a pure function of (seed, split, index), and its texts of the scene. Splits hold out combinations
(scene_facts.py).
"""

from __future__ import annotations

import random
from functools import cache, partial
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from limbeck.config import Section
from limbeck.data.builtin import Split, render
from limbeck.data.examples import Example, Examples, MadeImage, Source
from limbeck.data.scene_facts import BACKGROUNDS, PLACES, SIZES, Scene, make_scene
from limbeck.data.scene_texts import captions, questions
from limbeck.data.scene_words import things


class ScenesConfig(Section):
    """Composed pictures with five captions and several exactly answered questions each."""

    source: Literal["builtin:scenes"]
    split: Split = "train"
    count: int = Field(default=10_000, ge=1)
    """scenes"""
    size: int = Field(default=64, ge=16, le=512)
    """pixels a side"""
    objects: int = Field(default=3, ge=1, le=4)
    """most things in one scene"""
    vocabulary: int = Field(default=96, ge=36, le=144)
    """kinds of things"""
    questions: int = Field(default=4, ge=0)
    """questions per scene"""
    seed: int = 0
    """another seed gives other scenes and the same held-out combinations"""


def load_scenes(config: ScenesConfig) -> Source:
    """The scenes of one split; nothing is drawn before it is wanted. Raises DataError where a package is missing."""
    things()
    return Source(name=f"builtin:scenes/{config.split}", examples=Scenes(config))


class Scenes(Examples):
    """Scenes as examples; `scene(index)` gives the facts."""

    def __init__(self, config: ScenesConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def at(self, index: int) -> Example:
        """The example at 0 <= index < len."""
        config = self.config
        name = f"scenes/{config.split}/{config.vocabulary}-{config.objects}-{config.seed}/{index}"
        scene = self.scene(index)
        rng = random.Random(f"texts of {name}")
        return Example(
            id=name,
            image=MadeImage(f"{name}@{config.size}", partial(_picture, scene, config.size)),
            captions=captions(scene, rng),
            questions=questions(scene, rng, name, config.questions, config.vocabulary),
        )

    def scene(self, index: int) -> Scene:
        """The facts of one scene."""
        config = self.config
        rng = random.Random(f"scene {config.split}/{config.vocabulary}-{config.objects}-{config.seed}/{index}")
        return make_scene(rng, config.split, config.vocabulary, config.objects)


def draw(scene: Scene, size: int) -> np.ndarray:
    """The picture, uint8 [size, size, 3]."""
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = [
        min(max(channel + tint, 0), 255)
        for channel, tint in zip(BACKGROUNDS[scene.background], scene.tint, strict=True)
    ]
    for placed in scene.placed:
        colour, transparency = _sprite(placed.thing.code, round(SIZES[placed.size] * size))
        height, width = transparency.shape[:2]
        x, y = PLACES[placed.place]
        left = min(max(round((x + placed.offset[0]) * size - width / 2), 0), size - width)
        top = min(max(round((y + placed.offset[1]) * size - height / 2), 0), size - height)
        window = canvas[top : top + height, left : left + width]
        window[:] = colour + (window * transparency + 128) // 255
    return canvas


def _picture(scene: Scene, size: int) -> Image.Image:
    return Image.fromarray(draw(scene, size))


@cache
def _sprite(code: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A thing cut out: colour times opacity, uint8 [h, w, 3], and 255 - opacity, uint16 [h, w, 1]."""
    picture = Image.fromarray(render(code, max(144, 2 * side))).convert("RGBa")
    picture = picture.crop(picture.getbbox())
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    premultiplied = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    opacity = premultiplied[..., 3:]
    colour = np.minimum(premultiplied[..., :3], opacity)
    return colour, 255 - opacity.astype(np.uint16)
