"""Captioning: beam search, then COCO's metrics (times 100, as papers print them)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field, model_validator
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from limbeck.data.examples import Example
from limbeck.evaluation.inputs import (
    Row,
    TaskConfig,
    encode,
    evaluating,
    picture_batches,
    read_rows,
    require_captions,
    write_rows,
)
from limbeck.evaluation.metrics.caption import caption_scores
from limbeck.evaluation.metrics.ptb import TokenizerName
from limbeck.models.fusion import FusionVLM
from limbeck.writing import write_text

_COCO_NAME = re.compile(r"(?:.*/)?(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpg")
"""COCO_val2014_000000000042.jpg, or 000000000042.jpg of 2017, in any folder"""


class CaptioningConfig(TaskConfig):
    """How captions are written and scored. The defaults are BLIP's on COCO."""

    prompt: str = ""
    """what every caption begins with, and is not scored on: "a picture of " where the model was trained with it"""
    num_beams: int = Field(default=3, ge=1)
    """1 writes greedily"""
    min_length: int = Field(default=5, ge=0)
    """least tokens, class token and prompt counted as BLIP does, the separator not"""
    max_length: int = Field(default=20, ge=2)
    """most tokens, counted in the same way"""
    tokenizer: TokenizerName | None = None
    """what cuts captions into words for the metrics; null: Java's where it runs, else our own"""
    java_metrics: bool = True
    """METEOR, and SPICE where its models are, if Java runs"""

    @model_validator(mode="after")
    def _ordered(self) -> CaptioningConfig:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is more than max_length {self.max_length}")
        return self


def evaluate_captioning(
    model: FusionVLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    config: CaptioningConfig,
    *,
    rows: Path,
    device: torch.device,
    progress: bool = True,
) -> dict[str, float | str]:
    """Write one row per picture, COCO's results file beside it, and return the metrics and `tokenizer`.

    Raises ValueError where an example has no caption or the model cannot write, DataError where too many pictures are
    broken.
    """
    require_captions(examples, "captioning")
    prompt = encode(tokenizer, [config.prompt], model.config.text.max_positions, device)[0][:, :-1]
    room = config.max_length - prompt.shape[1]
    if room < 1:
        raise ValueError(f"captioning: the prompt {config.prompt!r} takes up max_length {config.max_length}")
    written: list[Row] = []
    with (
        evaluating(model, device, config.bf16),
        tqdm(total=len(examples), desc="captioning", unit="picture", disable=not progress) as bar,
    ):
        for batch, pixels in picture_batches(examples, model.config.vision.image_size, config, device):
            ids = model.generate(
                model.image_memory(model.encode_image(pixels)),
                prompt.expand(len(batch), -1),
                num_beams=config.num_beams,
                max_new_tokens=room,
                min_new_tokens=max(0, config.min_length - prompt.shape[1]),
            )
            captions = tokenizer.batch_decode(ids[:, prompt.shape[1] :], skip_special_tokens=True)
            written += [
                {"id": example.id, "prediction": caption.strip(), "references": list(example.captions)}
                for example, caption in zip(batch, captions, strict=True)
            ]
            bar.update(len(batch))
    scores = caption_scores(*_texts(written), tokenizer=config.tokenizer, java_metrics=config.java_metrics)
    write_rows(rows, ({**row, "scores": _rounded(scores.pictures[row["id"]])} for row in written))
    results = [{"image_id": _coco_id(row["id"]), "caption": row["prediction"]} for row in written]
    write_text(rows.with_name(f"{rows.stem}_results.json"), json.dumps(results, ensure_ascii=False))
    return {**scores.corpus, "tokenizer": scores.tokenizer}


def recompute(
    rows: Path, *, tokenizer: TokenizerName | None = None, java_metrics: bool = True
) -> dict[str, float | str]:
    """The metrics from the rows alone."""
    scores = caption_scores(*_texts(read_rows(rows)), tokenizer=tokenizer, java_metrics=java_metrics)
    return {**scores.corpus, "tokenizer": scores.tokenizer}


def _texts(rows: Sequence[Row]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions and references by picture. Raises ValueError where two pictures have one id."""
    predictions = {row["id"]: row["prediction"] for row in rows}
    if len(predictions) < len(rows):
        raise ValueError(f"captioning: {len(rows)} pictures have only {len(predictions)} different ids")
    return predictions, {row["id"]: row["references"] for row in rows}


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {metric: round(score, 4) for metric, score in scores.items()}


def _coco_id(example_id: str) -> int | str:
    """COCO's files want numbers: an id that is one, or that in the name of a picture of COCO's."""
    if example_id.isdecimal():
        return int(example_id)
    named = _COCO_NAME.fullmatch(example_id)
    return int(named[1]) if named else example_id
