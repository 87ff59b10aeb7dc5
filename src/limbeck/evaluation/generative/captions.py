"""Captions by COCO's metrics: of COCO's own files, of any source of examples, of built-in scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.data.examples import DataError, Example
from limbeck.data.records import BrokenRecord, existing_file, field, listed, read_json
from limbeck.data.scenes import ScenesConfig
from limbeck.data.sources import SourceConfig, load_sources
from limbeck.evaluation.generative.items import CAPTION, CommonConfig, Item, Pictures, Scored, reading
from limbeck.evaluation.inputs import Row
from limbeck.evaluation.metrics.caption import caption_scores


class CaptionConfig(CommonConfig):
    """Fields of every captioning benchmark."""

    prompt: str = CAPTION
    """empty shows the picture alone, for a model that has learned captions only"""
    max_new_tokens: int = Field(default=40, ge=1)


class CocoCaptionsConfig(CaptionConfig):
    """COCO captioning; papers report Karpathy's test split."""

    benchmark: Literal["coco_captions"]
    annotations: str
    """dataset_coco.json by Karpathy, or COCO's own captions_val2017.json and the like"""
    images: str | None = None
    """the folder that `filepath` (Karpathy) or `file_name` (COCO) starts from"""
    split: Literal["train", "val", "test"] = "test"
    """of Karpathy's file"""


class CaptionsConfig(CaptionConfig):
    """The captions of any source."""

    benchmark: Literal["captions"]
    data: tuple[SourceConfig, ...] = Field(min_length=1)


class ScenesCaptionConfig(CaptionConfig):
    """The captions of built-in scenes."""

    benchmark: Literal["scenes_caption"]
    data: ScenesConfig = ScenesConfig(source="builtin:scenes", split="test", count=500)


def load_coco_captions(config: CocoCaptionsConfig, base: Path) -> list[Item]:
    """One item per picture. Raises DataError."""
    file = existing_file(base, config.annotations, "benchmark coco_captions, field annotations")
    content = read_json(file)
    images = listed(content, "images", file)
    pictures = Pictures(config, base, config.images, "coco_captions")
    texts: dict[int, list[str]] = {}
    if "annotations" in content:
        for number, record in enumerate(listed(content, "annotations", file)):
            with reading(file, f"annotations[{number}]"):
                texts.setdefault(field(record, "image_id", int), []).append(field(record, "caption", str).strip())
    items: list[Item] = []
    for number, record in enumerate(images):
        with reading(file, f"images[{number}]"):
            if texts:
                id, name = field(record, "id", int), field(record, "file_name", str)
                references = texts.get(id, [])
            elif field(record, "split", str) == config.split:
                id, name = field(record, "cocoid", int), _karpathy_name(record)
                references = [field(one, "raw", str).strip() for one in field(record, "sentences", list)]
            else:
                continue
            if not references:
                raise BrokenRecord("no caption for this picture")
            row = {"references": references}
            items.append(Item(id=str(id), prompt=config.prompt, images=pictures.of(name), row=row))
        if len(items) == config.limit:
            break
    if not items:
        raise DataError(f"{file}: not one picture{'' if texts else f' of the split {config.split}'}")
    return items


def load_captions(config: CaptionsConfig | ScenesCaptionConfig, base: Path) -> list[Item]:
    """One item per example with a caption. Raises DataError."""
    sources = (config.data,) if isinstance(config, ScenesCaptionConfig) else config.data
    source = load_sources(sources, base)
    items: list[Item] = []
    for example in source.examples:
        if example.captions:
            items.append(_item(example, config))
        if len(items) == config.limit:
            break
    if not items:
        raise DataError(f"benchmark {config.benchmark}: {source.name} has no captions")
    return items


def score_captions(rows: Sequence[Row]) -> Scored:
    """BLEU, ROUGE-L, CIDEr, and METEOR and SPICE where Java runs them, times 100.

    `tokenizer` says what cut captions into words.
    """
    predictions = {row["id"]: row["prediction"] for row in rows}
    scores = caption_scores(predictions, {row["id"]: row["references"] for row in rows})
    grades = [
        {"scores": {metric: round(score, 4) for metric, score in scores.pictures[row["id"]].items()}} for row in rows
    ]
    summary: dict[str, Any] = {"pictures": len(rows), **scores.corpus, "tokenizer": scores.tokenizer}
    return Scored(summary=summary, grades=grades)


def caption_submission(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """COCO's results file."""
    return [
        {"image_id": int(row["id"]) if row["id"].isdecimal() else row["id"], "caption": row["prediction"]}
        for row in rows
    ]


def _karpathy_name(record: Any) -> str:
    name = field(record, "filename", str)
    return f"{field(record, 'filepath', str)}/{name}" if "filepath" in record else name


def _item(example: Example, config: CaptionsConfig | ScenesCaptionConfig) -> Item:
    images = () if config.blind else (example.image,)
    return Item(id=example.id, prompt=config.prompt, images=images, row={"references": list(example.captions)})
