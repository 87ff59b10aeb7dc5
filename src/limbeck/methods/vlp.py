"""What CLIP, ALBEF and BLIP are pre-trained and fine-tuned with: L_VLP of DLIP's Eq. 2, after Li et al. (2021, 2022).

contrastive     pictures against texts, soft targets from momentum encoders, a queue of past features
matching        does this text belong to this picture? hard negatives from the contrastive similarity
language        BLIP: the caption, word by word, given the picture
masked_language ALBEF: masked words of the caption, given the picture and the other words
answer          BLIP, and ALBEF with an answer decoder: the answers to questions about the picture
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from limbeck.config import Section
from limbeck.distributed import gather, rank
from limbeck.losses.contrastive import (
    FeatureQueue,
    contrastive,
    group_targets,
    hard_negatives,
    matching,
    similarity,
    soft_targets,
)
from limbeck.losses.language import token_cross_entropy
from limbeck.losses.reduce import masked_mean
from limbeck.methods.negatives import gather_texts
from limbeck.methods.passes import Model, Pairing, Pass, Pool, lacking, multimodal, unimodal
from limbeck.models.albef import Albef
from limbeck.models.clip import DualEncoder
from limbeck.models.fusion import FusionVLM
from limbeck.types import IGNORE, Batch, Signals

TERM_PASSES: dict[str, tuple[Pass, ...]] = {
    "contrastive": ("image", "text"),
    "matching": ("image", "text", "fused"),
    "masked_language": ("image",),
    "language": ("image", "decoded"),
    "answer": ("image", "question", "answer"),
}
"""The passes that each loss term looks at; matching finds its negatives by the unimodal ones."""

FAMILY_TERMS = {
    "clip": ("contrastive",),
    "albef": ("contrastive", "matching", "masked_language", "answer"),
    "blip": ("contrastive", "matching", "language", "answer"),
}
"""The loss terms that each family can have, where a model has the parts for them."""

HEAD_TERMS = ("contrastive", "matching")
"""The terms that look at what contrastive and matching heads make of a pass. Momentum encoders and queue serve them."""

MEASURED_EVERY = 100
"""Steps between two measurements for the log that would cost too much at each step."""


class ContrastiveConfig(Section):
    """Image-text contrast."""

    queue_size: int = Field(default=57600, ge=0)
    """past features that serve as further negatives; 0 for none"""
    momentum: float | None = Field(default=0.995, ge=0, le=1)
    """share that a momentum encoder keeps of itself at each step; None: no momentum encoders, as in CLIP"""
    alpha: float = Field(default=0.4, ge=0, le=1)
    """weight of the momentum encoders' soft targets at the end of the ramp"""
    ramp_epochs: float = Field(default=2.0, ge=0)
    """epochs in which alpha rises from 0: 2 in pre-training, 1 in retrieval fine-tuning"""
    negatives: Literal["rank", "all"] = "rank"
    """where matching draws its hard negatives: this process's batch, or every process's"""
    targets: Literal["pair", "picture"] = "pair"
    """`pair`: a caption's own picture is right; `picture`: all captions of one picture are (retrieval fine-tuning)"""


class VLPConfig(Section):
    """Settings of the pre-training losses."""

    contrastive: ContrastiveConfig = ContrastiveConfig()
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """of the language and answer losses"""
    prompt_tokens: int = Field(default=0, ge=0)
    """first words of every caption that the language loss leaves out ("a picture of" are 3)"""
    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    """share of words that ALBEF's masked language loss hides"""
    mask_token_id: int = Field(default=103, ge=0)
    """what stands for a hidden word; BERT's [MASK]. It must be the tokenizer's"""


class VLPObjective(nn.Module):
    """The pre-training losses of one student, with the momentum encoders and queues that they need.

    Holds no student: it is given to each call, so that its parameters stand in one place.
    """

    queue_ids: Tensor

    def __init__(self, config: VLPConfig, student: Model):
        super().__init__()
        self.config = config
        parts = {
            name: lacking(student, TERM_PASSES[name], heads=name in HEAD_TERMS)
            for name in FAMILY_TERMS[student.config.family]
        }
        self._terms = tuple(name for name, part in parts.items() if part is None)
        self.missing = {name: part for name, part in parts.items() if part is not None}
        """what the student lacks for each of its family's other terms"""
        self.momentum = None
        if config.contrastive.momentum is not None:
            self.momentum = deepcopy(student).requires_grad_(False)
        size = config.contrastive.queue_size
        self.image_queue = FeatureQueue(student.config.embedding, size)
        self.text_queue = FeatureQueue(student.config.embedding, size)
        self.register_buffer("queue_ids", torch.full((size,), -1))
        self.alpha = 0.0
        self._lag: Tensor | None = None
        self._active = True
        self._steps_per_epoch = 1

    def terms(self) -> tuple[str, ...]:
        """The loss terms of this student."""
        return self._terms

    def train(self, mode: bool = True) -> VLPObjective:
        super().train(mode)
        if self.momentum is not None:
            self.momentum.eval()
        return self

    def begin_stage(self, weights: Mapping[str, float], steps_per_epoch: int) -> None:
        """Without a contrastive or matching loss momentum encoders and queue rest."""
        self._active = _contrasts(weights)
        self._steps_per_epoch = steps_per_epoch

    @torch.no_grad()
    def end_stage(self, student: Model, weights: Mapping[str, float]) -> None:
        """After a stage in which the momentum encoders rested, they start again as copies of the student."""
        if self.momentum is not None and not _contrasts(weights):
            followers: list[Tensor] = [*self.momentum.parameters()]
            torch._foreach_copy_(followers, [*student.parameters()])  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def begin_step(self, student: Model, step: int) -> None:
        """Clamp the temperature, ramp alpha, let the momentum encoders follow the student."""
        student.temperature.clamp_(1e-3, 0.5)
        ramp = self.config.contrastive.ramp_epochs * self._steps_per_epoch
        self.alpha = self.config.contrastive.alpha * (min(1.0, step / ramp) if ramp else 1.0)
        momentum = self.config.contrastive.momentum
        if self.momentum is not None and momentum is not None and self._active:
            followers: list[Tensor] = [*self.momentum.parameters()]
            leaders: list[Tensor] = [*student.parameters()]
            torch._foreach_lerp_(followers, leaders, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
            self._lag = _lag(followers, leaders) if step % MEASURED_EVERY == 0 else None

    def state(self) -> dict[str, Tensor]:
        """What the log says of momentum encoders and queue, a scalar each, while they are in use.

        `alpha` is the soft targets' weight, `queue` the share of the queue that holds features, and every 100 steps
        `momentum_lag` how far the momentum encoders' weights are from the student's, by the norm of these.
        """
        state: dict[str, Tensor] = {}
        if self.momentum is not None:
            state["alpha"] = torch.tensor(self.alpha, device=self.queue_ids.device)
        if self._active and len(self.queue_ids):
            state["queue"] = (self.queue_ids >= 0).float().mean()
        if self._active and self._lag is not None:
            state["momentum_lag"] = self._lag
        return state

    def forward(
        self, student: Model, batch: Batch, wanted: set[str], needed: set[Pass], capture: set[Pass]
    ) -> tuple[dict[Pass, Signals], dict[str, Tensor], Pairing | None]:
        """The passes that the `wanted` terms and `needed` signals ask for, those terms, and how matching paired."""
        own = [name for name in self.terms() if name in wanted]
        names = needed.union({"image"}, *(TERM_PASSES[name] for name in own))
        signals = unimodal(student, batch, names, capture)
        terms: dict[str, Tensor] = {}
        similarities = None
        if "contrastive" in own or "matching" in own:
            terms["contrastive"], similarities = self._contrast(student, batch, signals["image"], signals["text"])
        if isinstance(student, DualEncoder):
            return signals, terms, None
        pairing = None
        if "matching" in own and similarities is not None:
            pairing = self._pair(batch, signals["image"], *similarities)
        signals |= multimodal(student, batch, signals["image"], names, capture, pairing)
        terms |= self._fusion_terms(student, batch, signals, own, pairing)
        return signals, {name: terms[name] for name in own if name in terms}, pairing

    def _contrast(
        self, student: Model, batch: Batch, image: Signals, text: Signals
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Contrastive loss, and the logits of all processes' pairs: pictures by texts and texts by pictures, [B, M]."""
        config, temperature = self.config.contrastive, student.temperature
        own = torch.arange(len(image.output), device=image.output.device) + rank() * len(image.output)
        if self.momentum is None:
            images, texts = gather(image.output), gather(text.output)
        else:
            with torch.no_grad():
                images = gather(self.momentum.encode_image(batch["pixel_values"]).output)
                texts = gather(self.momentum.encode_text(batch["input_ids"], batch["attention_mask"]).output)
        ids = gather(batch["image_id"])
        image_bank, text_bank = (images, self.image_queue.features), (texts, self.text_queue.features)
        targets = own
        if config.targets == "picture":
            targets = group_targets(batch["image_id"], torch.cat([ids, self.queue_ids]))
        to_text = to_image = targets
        if self.momentum is not None:
            scale = temperature.detach()
            to_text = soft_targets(images[own], text_bank, scale, self.alpha, targets)
            to_image = soft_targets(texts[own], image_bank, scale, self.alpha, targets)
        losses = contrastive(image.output, text.output, image_bank, text_bank, temperature, to_text, to_image)
        with torch.no_grad():
            similarities = (
                similarity(image.output, texts) / temperature,
                similarity(text.output, images) / temperature,
            )
            if len(self.queue_ids):
                self._enqueue(images, texts, ids)
        return masked_mean(losses, count=batch["counts"].pairs), similarities

    def _enqueue(self, images: Tensor, texts: Tensor, ids: Tensor) -> None:
        kept = ids[-len(self.queue_ids) :]
        slots = (self.image_queue.position + len(ids) - len(kept) + torch.arange(len(kept), device=ids.device)) % len(
            self.queue_ids
        )
        self.queue_ids.index_copy_(0, slots, kept)
        self.image_queue.enqueue(images)
        self.text_queue.enqueue(texts)

    def _pair(self, batch: Batch, image: Signals, to_text: Tensor, to_image: Tensor) -> Pairing:
        """Draw a wrong text for each picture and a wrong picture for each text, the more similar the likelier."""
        size = len(to_text)
        if self.config.contrastive.negatives == "all":
            pool = _gather_pool(batch, image.hidden)
        else:
            pool = Pool(image.hidden, batch["input_ids"], batch["attention_mask"], start=0)
            columns = slice(rank() * size, (rank() + 1) * size)
            to_text, to_image = to_text[:, columns], to_image[:, columns]
        ids = batch["image_id"] if len(pool.hidden) == size else gather(batch["image_id"])
        same = batch["image_id"][:, None] == ids
        smoothing = 0.0 if self.config.contrastive.targets == "picture" else 1e-4
        pictures = hard_negatives(to_image, same, smoothing=smoothing)
        return Pairing(pool, pictures, hard_negatives(to_text, same, smoothing=smoothing), same.all(1))

    def _fusion_terms(
        self,
        student: FusionVLM,
        batch: Batch,
        signals: Mapping[Pass, Signals],
        own: list[str],
        pairing: Pairing | None,
    ) -> dict[str, Tensor]:
        """Matching, language and answer losses, each the mean over the whole optimizer step."""
        counts, smoothing = batch["counts"], self.config.label_smoothing
        terms: dict[str, Tensor] = {}
        if pairing is not None:
            logits = signals["fused"].output
            labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            labels[: len(logits) // 3] = 1
            real = ~torch.cat([torch.zeros_like(pairing.alone), pairing.alone, pairing.alone])
            terms["matching"] = masked_mean(matching(logits, labels), real, count=3 * counts.pairs)
        if "language" in own:
            labels = next_tokens(batch["input_ids"], batch["attention_mask"], self.config.prompt_tokens)
            losses = token_cross_entropy(signals["decoded"].output, labels, smoothing)
            targets = counts.tokens - counts.pairs * (1 + self.config.prompt_tokens)
            terms["language"] = masked_mean(losses, count=targets)
        if "masked_language" in own and isinstance(student, Albef):
            terms["masked_language"] = self._masked_language(student, batch, signals["image"])
        if "answer" in own and "answer" in signals:
            labels = next_tokens(batch["answer_ids"], batch["answer_mask"])
            losses = token_cross_entropy(signals["answer"].output, labels, smoothing).sum(1)
            terms["answer"] = masked_mean(losses * batch["answer_weight"], count=counts.questions)
        return terms

    def _masked_language(self, student: Albef, batch: Batch, image: Signals) -> Tensor:
        """ALBEF's masked language loss: cross-entropy of hidden words.

        A word is hidden by its pair's own draws, and the divisor is the number of words that the whole step hides on
        average, its words times `mask_probability`. So each hidden word weighs the same however the step is split.
        """
        ids, mask, counts = batch["input_ids"], batch["attention_mask"], batch["counts"]
        words = mask & (ids != student.config.text.sep_token_id)
        words[:, 0] = False
        whether, how = batch["draws"].unbind(-1)
        hidden = words & (whether < self.config.mask_probability)
        last = student.config.text.vocab_size - 1
        random_ids = ((how - 0.9) * 10 * (last + 1)).long().clamp(0, last)
        shown = torch.where(hidden & (how < 0.8), self.config.mask_token_id, ids)
        shown = torch.where(hidden & (how >= 0.9), random_ids, shown)
        logits = student.fill(student.image_memory(image.hidden), shown, mask).output
        losses = token_cross_entropy(logits, ids.masked_fill(~hidden, IGNORE), label_smoothing=0.0)
        expected = self.config.mask_probability * (counts.tokens - 2 * counts.pairs)
        return masked_mean(losses, hidden, count=expected)


def _contrasts(weights: Mapping[str, float]) -> bool:
    """Whether a term with a weight needs momentum encoders and queue."""
    return any(weights.get(name) for name in HEAD_TERMS)


def _lag(followers: Sequence[Tensor], leaders: Sequence[Tensor]) -> Tensor:
    """Distance of two models' weights as a share of the leader's norm, a float32 scalar."""
    apart = [torch.dist(follower.float(), leader.float()) for follower, leader in zip(followers, leaders, strict=True)]
    return torch.stack(apart).norm() / torch.stack([leader.float().norm() for leader in leaders]).norm()


def _gather_pool(batch: Batch, hidden: Tensor) -> Pool:
    """Every process's pictures, with gradient, and texts, padded to the longest."""
    ids, mask = gather_texts(batch["input_ids"], batch["attention_mask"])
    return Pool(gather(hidden), ids, mask, start=rank() * len(hidden))


def next_tokens(ids: Tensor, mask: Tensor, prompt_tokens: int = 0) -> Tensor:
    """What a causal decoder should say at each position: the next token, IGNORE at the last and in prompt and padding.

    ids, mask [B, T] -> [B, T] int64. Position 0 (the class token, `[DEC]` to the decoder) is never a target.
    """
    labels = ids.roll(-1, dims=1).masked_fill(~mask.roll(-1, dims=1), IGNORE)
    labels[:, -1] = IGNORE
    labels[:, :prompt_tokens] = IGNORE
    return labels
