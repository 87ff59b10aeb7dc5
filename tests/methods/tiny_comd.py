"""CoMD over small models of transformers' classes, and batches as their processors make them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from limbeck.methods.comd import CoMD, StudentStage
from limbeck.training.freeze import freeze
from limbeck.training.trainer import count_batch
from limbeck.types import IGNORE, Counts

sys.path.append(str(Path(__file__).parents[1] / "models"))
from tiny_vlms import KINDS, picture, vlm  # noqa: F401


def stage(kind: str, **values: object) -> StudentStage:
    return StudentStage(**{"name": kind, "trainable": (), "weights": {}, "kind": kind, **values})


def begin(method: CoMD, at: StudentStage | None = None) -> CoMD:
    """The method in the first step of a stage, of its first one by default."""
    at = at or method.plan[0]
    method.begin_stage(at, 10)
    freeze(method, at.trainable, (*method.teachers(), *method.followers()))
    method.train()
    method.begin_step(0)
    return method


def batch_of(processor, answers: tuple[int, ...] = (3, 5), pictures: bool = True, seed: int = 0) -> dict:
    """One row for each number: a question about a picture, whose last so many tokens are the answer; with counts."""
    texts, images = [], []
    for row, length in enumerate(answers):
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": "Is there a dog? " + "Two. " * length}]
        turns = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(turns, add_generation_prompt=True))
        images.append([picture(40, 24 + 16 * row, seed + row)])
    made = processor(
        text=texts,
        images=images if pictures else None,
        padding=True,
        padding_side="right",
        add_special_tokens=False,
        return_tensors="pt",
    )
    labels = torch.full_like(made["input_ids"], IGNORE)
    for row, (length, end) in enumerate(zip(answers, made["attention_mask"].sum(1).tolist(), strict=True)):
        labels[row, end - length - 1 : end - 1] = made["input_ids"][row, end - length : end]
    batch = {**made, "labels": labels, "image_id": torch.arange(len(answers))}
    return {**batch, "counts": Counts(*count_batch(batch))}


def theirs(labels: Tensor) -> Tensor:
    """Shifted labels as transformers takes them: the token itself, where the one before it predicts it."""
    unshifted = torch.full_like(labels, IGNORE)
    unshifted[:, 1:] = labels[:, :-1]
    return unshifted
