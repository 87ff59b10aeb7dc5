"""The passes of one batch through a model's towers, the same for student and teacher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.fusion import FusionVLM
from limbeck.types import AttentionState, Batch, Signals

Model = FusionVLM | DualEncoder

Pass = str
"""`image` tower; `text` alone; text `fused` with its picture; text `decoded` from its picture; `question` fused with
its picture; `answer` decoded from the fused question"""

PASSES: tuple[Pass, ...] = ("image", "text", "fused", "decoded", "question", "answer")
CAPTION_PASSES: tuple[Pass, ...] = ("text", "fused", "decoded")
"""The passes that read a picture's caption."""
QUESTION_PASSES: tuple[Pass, ...] = ("question", "answer")
"""The passes that read a question about it."""

BRINGS = {
    "text encoder": "retrieval",
    "contrastive and matching heads": "retrieval",
    "caption decoder": "captioning",
    "answer decoder": "VQA",
}
"""The parts that a BLIP checkpoint may lack, and which task's checkpoint holds each."""


def lacking(model: Model, passes: Iterable[Pass], *, heads: bool = False) -> str | None:
    """The first part that a model lacks for some passes, or for heads to compare them by; None where it has all."""
    names, config = set(passes), model.config
    if isinstance(config, ClipConfig):
        return "layers in which text meets picture" if names - {"image", "text"} else None
    if names - {"image", "decoded"} and not config.encoder:
        return "text encoder"
    if "decoded" in names and config.decoder == "none":
        return "caption decoder"
    if names & {"question", "answer"} and not config.answers:
        return "answer decoder"
    return "contrastive and matching heads" if heads and not config.heads else None


def unimodal(model: Model, batch: Batch, names: set[Pass], capture: set[Pass]) -> dict[Pass, Signals]:
    """The passes through image and text tower that `names` asks for; those of `capture` hand over their attention."""
    signals: dict[Pass, Signals] = {}
    if "image" in names:
        signals["image"] = model.encode_image(batch["pixel_values"], capture="image" in capture)
    if "text" in names:
        signals["text"] = model.encode_text(batch["input_ids"], batch["attention_mask"], capture="text" in capture)
    return signals


class Pool(NamedTuple):
    """The pictures and texts among which matching finds its negatives; this process's pairs stand from `start` on."""

    hidden: Tensor
    """[M, N, D] pictures"""
    input_ids: Tensor
    """[M, T]"""
    mask: Tensor
    """[M, T]"""
    start: int


class Pairing(NamedTuple):
    """Matching's hard negatives."""

    pool: Pool
    pictures: Tensor
    """[B] row of the pool: a wrong picture for each text"""
    texts: Tensor
    """[B] row of the pool: a wrong text for each picture"""
    alone: Tensor
    """[B] boolean: a pair of whose picture the whole pool is; its negatives are none"""


def multimodal(
    model: FusionVLM,
    batch: Batch,
    image: Signals,
    names: set[Pass],
    capture: set[Pass],
    pairing: Pairing | None = None,
) -> dict[Pass, Signals]:
    """The passes in which text meets picture.

    With a `pairing` the fused pass has 3B rows: the pairs as they are, texts with a wrong picture, pictures with a
    wrong text. Keys and values of a picture are made once and serve every pass.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    signals: dict[Pass, Signals] = {}
    own = torch.arange(len(ids), device=ids.device) + (pairing.pool.start if pairing else 0)
    others = pairing is not None and len(pairing.pool.hidden) > len(ids)
    memory = model.image_memory(pairing.pool.hidden if pairing is not None and others else image)
    rows = own if others else None
    if "fused" in names and pairing is None:
        signals["fused"] = model.fuse(memory, ids, mask, capture="fused" in capture)
    elif "fused" in names and pairing is not None:
        texts = torch.cat([own, own, pairing.texts])
        signals["fused"] = model.fuse(
            memory,
            pairing.pool.input_ids[texts],
            pairing.pool.mask[texts],
            rows=torch.cat([own, pairing.pictures, own]),
            capture="fused" in capture,
        )
    if "decoded" in names:
        signals["decoded"] = model.decode(memory, ids, mask, rows=rows, capture="decoded" in capture)
    if names & {"question", "answer"} and "question_ids" in batch and len(batch["question_ids"]):
        signals["question"] = model.fuse(
            memory,
            batch["question_ids"],
            batch["question_mask"],
            rows=own[batch["question_image"]],
            capture="question" in capture,
        )
        if "answer" in names:
            asked = model.question_memory(signals["question"].hidden, batch["question_mask"])
            signals["answer"] = model.answer(
                asked,
                batch["answer_ids"],
                batch["answer_mask"],
                rows=batch["answer_question"],
                capture="answer" in capture,
            )
    return signals


def first_rows(signals: Signals, count: int) -> Signals:
    """The first `count` rows of a pass: of a fused pass with negatives, the positive pairs."""

    def cut(state: AttentionState | None) -> AttentionState | None:
        if state is None:
            return None
        mask = state.mask if state.mask is None or len(state.mask) == 1 else state.mask[:count]
        return replace(state, query=state.query[:count], key=state.key[:count], mask=mask)

    return Signals(
        output=signals.output[:count],
        hidden=signals.hidden[:count],
        mask=None if signals.mask is None else signals.mask[:count],
        self_attention=cut(signals.self_attention),
        cross_attention=cut(signals.cross_attention),
    )
