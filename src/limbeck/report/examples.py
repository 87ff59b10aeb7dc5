"""Held-out examples beside their pictures: what each model retrieved, wrote, answered and looked at."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from limbeck.report.heat import Grid
from limbeck.report.records import ReportError, read_lines, read_list

PNG = b"\x89PNG\r\n\x1a\n"
TOP = 5
"""retrieved captions that are shown"""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a picture and what people answered."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One held-out picture, with what this run's model looks at in it."""

    id: str
    file: Path
    captions: tuple[str, ...]
    questions: tuple[Question, ...]
    image_attention: Grid
    """how much the image tower's class token looks at each patch, rows from the top; empty where it was not kept"""
    caption_attention: Grid
    """how much the caption's words look at each patch; empty where it was not kept"""


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """The first captions that a model finds for a picture."""

    captions: tuple[tuple[str, bool], ...]
    """text, and whether it belongs to the picture"""
    rank: int
    """where the first right caption stands, from 1"""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered to one question."""

    question: str
    kind: str
    answer: str
    accuracy: float
    """0 to 1"""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's output by picture id."""

    retrieved: Mapping[str, Retrieved]
    captions: Mapping[str, str]
    answers: Mapping[str, tuple[Answer, ...]]
