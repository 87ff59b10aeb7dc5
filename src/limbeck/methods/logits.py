"""What a teacher's predictions teach, beside its hidden states: soft targets for each of the pre-training losses.

Not in DLIP's paper. The divergence is KL(teacher || student) with both sides softened by a temperature (Hinton et al.,
2015); between pictures and texts it compares the two models' similarities within the batch (TinyCLIP's affinity).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from limbeck.config import Section
from limbeck.distributed import gather
from limbeck.losses.contrastive import similarity
from limbeck.losses.divergence import forward_kl
from limbeck.losses.reduce import masked_mean
from limbeck.methods.passes import Model, Pass
from limbeck.methods.vlp import next_tokens
from limbeck.types import IGNORE, Batch, Signals

LogitTerm = Literal["contrastive", "matching", "language", "answer"]

LOGIT_PASSES: Mapping[LogitTerm, tuple[Pass, ...]] = {
    "contrastive": ("image", "text"),
    "matching": ("fused",),
    "language": ("decoded",),
    "answer": ("answer",),
}
"""The passes whose outputs are compared."""


class LogitsConfig(Section):
    """Soft targets from the teacher's predictions (ours; the paper has none)."""

    sites: tuple[LogitTerm, ...] = ()
    """which losses get soft targets too: the terms `logits/contrastive`, `logits/matching`..."""
    temperature: float = Field(default=1.0, gt=0)
    """softens both distributions of the last three; similarities have each model's own temperature"""


def logits_loss(
    term: LogitTerm,
    models: tuple[Model, Model],
    student: Mapping[Pass, Signals],
    teacher: Mapping[Pass, Signals],
    batch: Batch,
    config: LogitsConfig,
    prompt_tokens: int,
) -> Tensor:
    """KL of the student's prediction from the teacher's, each averaged as the loss of that name; `models` as paired."""
    counts = batch["counts"]
    if term == "contrastive":
        own, taught = (_similarities(model, signals) for model, signals in zip(models, (student, teacher), strict=True))
        losses = sum(forward_kl(*pair) for pair in zip(own, taught, strict=True))
        assert isinstance(losses, Tensor)
        return masked_mean(losses / 2, count=counts.pairs)
    name = LOGIT_PASSES[term][0]
    losses = forward_kl(student[name].output, teacher[name].output, config.temperature)
    if term == "matching":
        return masked_mean(losses, count=counts.pairs * (len(losses) / len(batch["input_ids"])))
    if term == "answer":
        said = next_tokens(batch["answer_ids"], batch["answer_mask"]) != IGNORE
        return masked_mean(losses.masked_fill(~said, 0).sum(1) * batch["answer_weight"], count=counts.questions)
    said = next_tokens(batch["input_ids"], batch["attention_mask"], prompt_tokens) != IGNORE
    return masked_mean(losses, said, count=counts.tokens - counts.pairs * (1 + prompt_tokens))


def _similarities(model: Model, signals: Mapping[Pass, Signals]) -> tuple[Tensor, Tensor]:
    """Logits of pictures by texts and of texts by pictures, [B, M] each, over every process's pairs."""
    image, text, temperature = signals["image"].output, signals["text"].output, model.temperature.float()
    return similarity(image, gather(text)) / temperature, similarity(text, gather(image)) / temperature
