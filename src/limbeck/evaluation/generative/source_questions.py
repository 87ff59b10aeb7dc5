"""The questions of any source of examples, and of built-in scenes, which need no files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from limbeck.data.example_conversations import SHORT_ANSWER
from limbeck.data.examples import DataError
from limbeck.data.scenes import ScenesConfig
from limbeck.data.sources import SourceConfig, load_sources
from limbeck.evaluation.generative.items import CommonConfig, Item


class QuestionsConfig(CommonConfig):
    """The questions of any source; scored as VQA: ten answers by agreement, fewer by equality."""

    benchmark: Literal["questions"]
    data: tuple[SourceConfig, ...] = Field(min_length=1)
    short_answer: str = SHORT_ANSWER
    """stands after every question"""
    max_new_tokens: int = Field(default=16, ge=1)


class ScenesVqaConfig(CommonConfig):
    """The questions of built-in scenes, each with one exact answer."""

    benchmark: Literal["scenes_vqa"]
    data: ScenesConfig = ScenesConfig(source="builtin:scenes", split="test", count=500)
    short_answer: str = SHORT_ANSWER
    """stands after every question; "" for models that answer bare questions in a word, such as the laptop's of CoMD"""
    max_new_tokens: int = Field(default=16, ge=1)


def load_questions(config: QuestionsConfig | ScenesVqaConfig, base: Path) -> list[Item]:
    """One item per question. Raises DataError where there is none."""
    sources = (config.data,) if isinstance(config, ScenesVqaConfig) else config.data
    source = load_sources(sources, base)
    items: list[Item] = []
    for example in source.examples:
        for question in example.questions:
            row = {
                "image_id": example.id,
                "kind": question.kind,
                "question": question.text,
                "answers": list(question.answers),
            }
            images = () if config.blind else (example.image,)
            items.append(Item(id=question.id, prompt=question.text + config.short_answer, images=images, row=row))
        if config.limit is not None and len(items) >= config.limit:
            break
    if not items:
        raise DataError(f"benchmark {config.benchmark}: {source.name} has no questions")
    return items[: config.limit]
