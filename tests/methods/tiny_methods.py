"""Models of some thousand parameters and batches without data, for tests of methods, here and in other processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from limbeck.method import Stage
from limbeck.methods.dlip import DLIP, DLIPConfig
from limbeck.methods.passes import Model
from limbeck.models.albef import Albef
from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.fusion import FusionConfig
from limbeck.models.med import TextConfig
from limbeck.models.vision import VisionConfig
from limbeck.training.trainer import count_batch
from limbeck.types import Batch, Counts

VOCABULARY, PAD, SEP, CLS, MASK = 60, 0, 3, 2, 4
FAMILIES = ("blip", "albef", "clip")


def make_model(family: str, seed: int, width: int = 32, heads: int = 2, dropout: float = 0.0) -> Model:
    """16 image tokens and the class token, 2 layers; weights spread widely enough that every input matters."""
    torch.manual_seed(seed)
    vision = VisionConfig(width=width, layers=2, heads=heads, image_size=32, patch_size=8)
    text = TextConfig(
        width=width,
        layers=2,
        heads=heads,
        vocab_size=VOCABULARY,
        max_positions=16,
        fusion_layers=1 if family == "albef" else None,
        dropout=dropout,
        pad_token_id=PAD,
        sep_token_id=SEP,
        dec_token_id=5,
        enc_token_id=6,
    )
    if family == "clip":
        model = DualEncoder(ClipConfig(vision=vision, text=text, embedding=16))
    elif family == "albef":
        model = Albef(FusionConfig(family="albef", vision=vision, text=text, embedding=16))
    else:
        model = Blip(FusionConfig(family="blip", vision=vision, text=text, embedding=16))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def make_batch(size: int, seed: int = 0, pictures: Sequence[int] | None = None) -> Batch:
    """`size` pairs, 1 question each, 1 or 2 answers each; `pictures` are image_ids, else all differ. Without counts."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.arange(size) if pictures is None else torch.tensor(pictures)
    ids, mask = _texts(size, 9, generator)
    question_ids, question_mask = _texts(size, 7, generator)
    answered = torch.tensor([row for row in range(size) for _ in range(1 + row % 2)])
    answer_ids, answer_mask = _texts(len(answered), 5, generator)
    return Batch(
        pixel_values=torch.randn(size, 3, 32, 32, generator=generator),
        input_ids=ids,
        attention_mask=mask,
        image_id=images,
        question_ids=question_ids,
        question_mask=question_mask,
        question_image=torch.arange(size),
        answer_ids=answer_ids,
        answer_mask=answer_mask,
        answer_question=answered,
        answer_weight=torch.tensor([1.0 if row % 2 == 0 else 0.5 for row in answered.tolist()]),
        draws=torch.rand(size, 9, 2, generator=generator),
    )


def rows_of(batch: Batch, start: int, end: int) -> Batch:
    """The pairs `start` to `end` of a batch, texts as long as they were."""
    asked = slice(start, end)
    answers = (batch["answer_question"] >= start) & (batch["answer_question"] < end)
    return Batch(
        pixel_values=batch["pixel_values"][asked],
        input_ids=batch["input_ids"][asked],
        attention_mask=batch["attention_mask"][asked],
        image_id=batch["image_id"][asked],
        question_ids=batch["question_ids"][asked],
        question_mask=batch["question_mask"][asked],
        question_image=torch.arange(end - start),
        answer_ids=batch["answer_ids"][answers],
        answer_mask=batch["answer_mask"][answers],
        answer_question=batch["answer_question"][answers] - start,
        answer_weight=batch["answer_weight"][answers],
        draws=batch["draws"][asked],
    )


def counted(batch: Batch, whole: Batch | None = None, processes: int = 1) -> Batch:
    """`batch` with the counts of the whole step that it is a part of."""
    return {**batch, "counts": Counts(*(count_batch(batch if whole is None else whole) / processes))}


def make_method(
    family: str = "blip",
    *,
    teacher: bool = True,
    weights: Mapping[str, float] | None = None,
    vlp: Mapping[str, object] | None = None,
    dropout: float = 0.0,
    **config: object,
) -> DLIP:
    """A method in its first step, ready for `forward`; the teacher is wider and has more heads."""
    student = make_model(family, seed=0, dropout=dropout)
    other = make_model(family, seed=1, width=48, heads=4) if teacher else None
    objective = {"contrastive": {"queue_size": 12}, "mask_token_id": MASK, **(vlp or {})}
    torch.manual_seed(2)
    stage = Stage(name="pretrain", trainable=(), weights=weights or {})
    method = DLIP(DLIPConfig.model_validate({"vlp": objective, **config}), student, other, [stage])
    method.train()
    method.begin_stage(stage, steps_per_epoch=10)
    method.begin_step(0)
    return method


def gradients(method: DLIP) -> dict[str, Tensor]:
    """Gradient by parameter name, of those that have one."""
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def _texts(rows: int, longest: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ids = torch.randint(7, VOCABULARY, (rows, longest), generator=generator)
    lengths = torch.randint(3, longest + 1, (rows,), generator=generator)
    lengths[0] = longest
    ids[:, 0] = CLS
    mask = torch.arange(longest) < lengths[:, None]
    ids = ids.masked_fill(~mask, PAD)
    ids[torch.arange(rows), lengths - 1] = SEP
    return ids, mask
