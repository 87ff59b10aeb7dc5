"""What recipes of models that write share: a language model, conversations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from limbeck.config import Section
from limbeck.data.encoded_conversations import DialoguesConfig


class LanguageModelChoice(Section):
    """A decoder-only language model of transformers: a pretrained one by `folder`, or a new one."""

    folder: str | None = None
    """a folder, a hub name or limbeck:NAME; it brings its own sizes"""
    kind: Literal["opt", "llama", "qwen2", "qwen3"] = "llama"
    """the class of a new one"""
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    max_positions: int = 2048
    """longest sequence of a new one"""
    initial: float | None = Field(default=None, gt=0)
    """standard deviation of a new one's first weights; null: 1 / sqrt(width), since transformers' 0.02 is small
    for a narrow one"""

    @model_validator(mode="after")
    def _one_origin(self) -> LanguageModelChoice:
        sizes = (self.width, self.layers, self.heads)
        if self.folder is None and None in sizes:
            raise ValueError("give `folder`, or `width`, `layers` and `heads` of a new model")
        if self.folder is not None and sizes != (None, None, None):
            raise ValueError("give `folder`, or `width`, `layers` and `heads`, not both")
        return self


class ConversationsConfig(Section):
    """What every stage's data share."""

    root: str = "."
    """folder that relative paths start from, those of `evaluation` too"""
    dialogues: DialoguesConfig = DialoguesConfig()
    max_skipped: float = Field(default=0.01, ge=0, le=1)
    """share of broken records and pictures past which the run stops"""
