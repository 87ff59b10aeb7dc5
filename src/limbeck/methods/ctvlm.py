"""CTVLM: a tiny and a large vision-language model that teach each other (Lu et al., 2024).

    I-a  align_tiny    L = ITC + ITM + ITG of the tiny model
    I-b  align_large   L = (1 - lambda) (CE_tiny + CE_large) + lambda KL(tiny || large)        (Eq. 3)
    II   tune          L = (1 - lambda) (CE_tiny + CE_large) + lambda KL(tiny || large)        (Eq. 4)

In I-b the tiny model is the teacher, so its KL is forward; in II the large one is, so it is reverse. Only what a stage
trains gets a gradient: the connector P2 in I-b, everything but the eye in II, where the teacher's logits are detached
and its features, which come from the tiny model, are not. A fourth kind, `language`, teaches the large model its
language first, where it has no pretrained weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.distributed import gather, rank
from limbeck.losses.contrastive import contrastive, matching, similarity
from limbeck.losses.divergence import linear_cross_entropy, linear_divergence
from limbeck.losses.reduce import masked_mean
from limbeck.method import Loss, Method, Stage
from limbeck.methods.negatives import drawn_negatives, gather_texts
from limbeck.methods.recompute import recompute_frozen
from limbeck.methods.sequences import last_of, smoothed, to_left, to_right, without_pictures
from limbeck.models.duet import Duet
from limbeck.models.duet_build import fill_table
from limbeck.types import IGNORE, ConversationBatch

Kind = Literal["language", "align_tiny", "align_large", "tune"]
Direction = Literal["none", "forward", "reverse"]


@dataclass(frozen=True, kw_only=True)
class DuetStage(Stage):
    """A stage of CTVLM."""

    kind: Kind
    kd: Direction = "none"
    """KL(teacher || student), KL(student || teacher), or none; tiny teaches in `align_large`, large in `tune`"""
    kd_weight: float = 0.3
    """the papers' lambda"""
    temperature: float = 1.0
    on_policy: bool = False
    """the divergence is taken on answers that the student samples, not on the data's"""
    negatives: Literal["rank", "all"] = "rank"
    """where `align_tiny` draws matching's wrong pairs: this process's micro-batch, or every process's"""
    models: Literal["both", "tiny"] = "both"
    """`tiny` leaves the large model out: the baseline of Table 4"""
    stop_token_id: int = 2
    """ends a sampled answer"""
    pad_token_id: int = 0


class Heads(nn.Module):
    """What stage I-a compares pictures and texts with: two projections, a matching head, a temperature."""

    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.image = nn.Linear(width, embedding)
        self.text = nn.Linear(width, embedding)
        self.match = nn.Linear(width, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))


class Predictions(NamedTuple):
    """One language model's answers, as what meets its head."""

    hidden: Tensor
    """[A, E], one row for each supervised token"""
    head: Tensor
    """[V, E]"""
    targets: Tensor
    """[A] the tokens to predict"""


class _Pool(NamedTuple):
    """The pairs among which matching draws wrong ones."""

    image: Tensor
    """picture tokens [P, N, D]"""
    ids: Tensor
    """[P, T]"""
    mask: Tensor
    """[P, T] boolean"""
    image_id: Tensor
    """[P]"""

    def of_all_processes(self) -> _Pool:
        """Those of every process in the order of ranks; texts are padded to the longest, pictures keep a gradient."""
        return _Pool(gather(self.image), *gather_texts(self.ids, self.mask), gather(self.image_id))


class CTVLM(Method):
    """The duet, stage I-a's heads, and the losses of each stage.

    `vocabulary` is the tokenizer's size: head rows past it are padding and count in no softmax.
    """

    def __init__(self, duet: Duet, vocabulary: int, stages: Sequence[DuetStage], embedding: int = 256):
        super().__init__()
        self.duet = duet
        self.heads = Heads(duet.tiny.width, embedding)
        self.vocabulary = vocabulary
        self.plan = tuple(replace(stage, trainable=stage.trainable or self._trains(stage)) for stage in stages)
        self.stage = self.plan[0]

    def stages(self) -> Iterator[Stage]:
        for stage in self.plan:
            self.stage = stage
            yield stage
            if stage.kind == "language":
                fill_table(self.duet)

    def teachers(self) -> tuple[str, ...]:
        """What no stage so far has changed, and heads that none needs any more; checkpoints leave it out."""
        kinds = {stage.kind for stage in self.plan[: self.plan.index(self.stage) + 1]}
        untouched = ["duet.tiny.eye"]
        untouched += ["duet.tiny.table"] if self.duet.tiny.table_is_frozen else []
        untouched += ["duet.large"] if not kinds & {"language", "tune"} else []
        untouched += ["duet.connector"] if not kinds & {"align_large", "tune"} else []
        untouched += ["heads"] if self.stage.kind != "align_tiny" else []
        return tuple(untouched)

    def followers(self) -> tuple[str, ...]:
        return ()

    def _trains(self, stage: DuetStage) -> tuple[str, ...]:
        """What a stage trains (the paper's sections 3.3 and 4.1): the eye never, a frozen token table neither."""
        tiny = tuple(f"duet.tiny.{name}" for name, part in self.duet.tiny.named_children() if _has_weights(part))
        frozen = {"duet.tiny.eye"} | ({"duet.tiny.table"} if self.duet.tiny.table_is_frozen else set())
        tiny = tuple(name for name in tiny if name not in frozen)
        match stage.kind:
            case "language":
                return ("duet.large",)
            case "align_tiny":
                return (*tiny, "heads")
            case "align_large":
                return ("duet.connector",)
            case "tune":
                return tiny if stage.models == "tiny" else (*tiny, "duet.connector", "duet.large")

    def train(self, mode: bool = True) -> CTVLM:
        """What is frozen stays without dropout: the eye always, both language models in `align_large`."""
        super().train(mode)
        self.duet.tiny.eye.eval()
        if self.stage.kind == "align_large":
            for model in (self.duet.tiny, self.duet.large):
                model.eval()
                if mode:
                    recompute_frozen(model)
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """What TrainingArguments' `gradient_checkpointing` asks of a model."""
        self.duet.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """The same, as earlier versions of transformers ask it."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, every_n_layers, offload)

    def begin_stage(self, stage: Stage, steps_per_epoch: int) -> None:
        assert isinstance(stage, DuetStage)
        self.stage = stage

    @torch.no_grad()
    def begin_step(self, step: int) -> None:
        self.heads.temperature.clamp_(1e-3, 0.5)

    def forward(self, batch: ConversationBatch) -> Loss:
        match self.stage.kind:
            case "language":
                return self._read_texts(batch)
            case "align_tiny":
                return self._align_tiny(batch)
        return self._teach(batch)

    def _read_texts(self, batch: ConversationBatch) -> Loss:
        """Every text token is predicted by the large model; pictures are left out."""
        ids, mask = without_pictures(batch, self.duet.image_token_id)
        labels = ids.roll(-1, 1).masked_fill(~mask.roll(-1, 1), IGNORE)
        labels[:, -1] = IGNORE
        counts = batch["counts"]  # whose tokens are those of the pictures too; the first text token is no target
        weight = 1 / (counts.tokens - counts.pairs * (1 + self.duet.tiny.config.image_tokens))
        large = self._large(self.duet.large_embeddings(ids), mask, labels)
        return Loss(terms={"language/large": self._cross_entropy(large, weight)}, weights={"language/large": 1.0})

    def _align_tiny(self, batch: ConversationBatch) -> Loss:
        """BLIP-2's three losses for a causal model: one pass over 3B rows serves matching and generation."""
        tiny, counts, size = self.duet.tiny, batch["counts"], len(batch["input_ids"])
        assert isinstance(self.stage, DuetStage)
        image = tiny.see(batch["pixel_values"])
        ids, mask = without_pictures(batch, self.duet.image_token_id)
        seen = functional.normalize(self.heads.image(image.mean(1)).float(), dim=-1)
        said = functional.normalize(self.heads.text(last_of(tiny.read(ids, mask), mask)).float(), dim=-1)
        scale, start = self.heads.temperature, rank() * size
        seen_bank, said_bank = gather(seen), gather(said)
        right = smoothed(torch.arange(size, device=seen.device) + start, len(seen_bank))
        contrast = contrastive(seen, said, seen_bank, said_bank, scale, right, right)

        pool = _Pool(image, batch["input_ids"], batch["attention_mask"], batch["image_id"])
        if self.stage.negatives == "all":
            pool = pool.of_all_processes()
        else:
            start, seen_bank, said_bank = 0, seen, said
        same = batch["image_id"][:, None] == pool.image_id
        with torch.no_grad():
            text_draws, picture_draws = batch["draws"].unbind(1)
            wrong_text = drawn_negatives(similarity(seen, said_bank) / scale, same, text_draws)
            wrong_picture = drawn_negatives(similarity(said, seen_bank) / scale, same, picture_draws)
        own = torch.arange(size, device=seen.device) + start
        texts, pictures = torch.cat([own, own, wrong_text]), torch.cat([own, wrong_picture, own])
        mask = pool.mask[texts]
        hidden = tiny.read(pool.ids[texts], mask, pool.image[pictures])
        is_pair = torch.zeros(3 * size, dtype=torch.long, device=seen.device)
        is_pair[:size] = 1
        match = matching(self.heads.match(last_of(hidden, mask)), is_pair)
        has_negative = (~same).any(1)
        is_true = torch.cat([torch.ones_like(has_negative), has_negative, has_negative])
        written = self._tiny(hidden[:size, : batch["labels"].shape[1]], batch["labels"])
        terms = {
            "contrastive": masked_mean(contrast, count=counts.pairs),
            "matching": masked_mean(match, is_true, 3 * counts.pairs),
            "language/tiny": self._cross_entropy(written, 1 / counts.answer_tokens),
        }
        return Loss(terms=terms, weights=dict.fromkeys(terms, 1.0), state={"temperature": scale.detach()})

    def _teach(self, batch: ConversationBatch) -> Loss:
        """Stages I-b and II: both models' cross-entropy, and the divergence between them."""
        stage, weight = self.stage, 1 / batch["counts"].answer_tokens
        assert isinstance(stage, DuetStage)
        image = self.duet.tiny.see(batch["pixel_values"])
        texts = (batch["input_ids"], batch["attention_mask"], batch["labels"])
        tiny, large = self.answer(*texts, image, tiny_alone=stage.models == "tiny")
        terms = {"language/tiny": self._cross_entropy(tiny, weight)}
        share = stage.kd_weight if stage.kd != "none" else 0.0
        weights = {"language/tiny": 1 - share}
        if large is not None:
            terms["language/large"] = self._cross_entropy(large, weight)
            weights["language/large"] = 1 - share
        if large is not None and stage.kd != "none":
            if stage.on_policy:
                ids, mask, labels = self._sample(batch, image)
                tiny, large = self.answer(ids, mask, labels, image)
                assert large is not None
                share_of_step = len(ids) / batch["counts"].pairs  # by rows: nobody knows yet how much all will say
                weight = share_of_step / (labels != IGNORE).sum()
            student, teacher = (large, tiny) if stage.kind == "align_large" else (tiny, large)
            terms[f"{stage.kd}_kl"] = self._divergence(student, teacher, weight)
            weights[f"{stage.kd}_kl"] = share
        return Loss(terms=terms, weights=weights)

    def answer(
        self, ids: Tensor, mask: Tensor, labels: Tensor, image: Tensor, *, tiny_alone: bool = False
    ) -> tuple[Predictions, Predictions | None]:
        """Both models over the same conversations; the large one reads the tiny one's features.

        ids, mask and shifted labels [B, T], picture tokens [B, N, D]. The second is None where the tiny one is alone.
        """
        hidden = self.duet.tiny.read(ids, mask, image)
        tiny = self._tiny(hidden, labels)
        if tiny_alone:
            return tiny, None
        large = self._large(*self.duet.large_inputs(ids, mask, hidden, labels))
        assert torch.equal(tiny.targets, large.targets), "both models answer the same tokens in the same order"
        return tiny, large

    def _tiny(self, hidden: Tensor, labels: Tensor) -> Predictions:
        answers = labels != IGNORE
        return Predictions(self.duet.tiny.head_input(hidden[answers]), self.duet.tiny.head_weight, labels[answers])

    def _large(self, embeddings: Tensor, mask: Tensor, labels: Tensor) -> Predictions:
        answers = labels != IGNORE
        hidden = self.duet.large_hidden(embeddings, mask)
        return Predictions(hidden[answers], self.duet.large_head_weight, labels[answers])

    def _cross_entropy(self, predicted: Predictions, weight: Tensor) -> Tensor:
        """Sum over answer tokens times `weight`, 1 / their number in the whole step."""
        weights = weight.expand(len(predicted.targets))
        return linear_cross_entropy(
            predicted.hidden, predicted.head, predicted.targets, weights, vocabulary=self.vocabulary
        )

    def _divergence(self, student: Predictions, teacher: Predictions, weight: Tensor) -> Tensor:
        assert isinstance(self.stage, DuetStage)
        assert self.stage.kd != "none"
        return linear_divergence(
            student.hidden,
            student.head,
            teacher.hidden.detach(),
            teacher.head.detach(),
            weight.expand(len(student.targets)),
            kind=self.stage.kd,
            temperature=self.stage.temperature,
            vocabulary=self.vocabulary,
        )

    @torch.no_grad()
    def _sample(self, batch: ConversationBatch, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The student's own answers to the conversations' first questions: ids, mask and shifted labels [B, T].

        The picture tokens [B, N, D] are the step's own: the eye has run.
        """
        stage, answers = self.stage, batch["labels"] != IGNORE
        assert isinstance(stage, DuetStage)
        first = answers.int().argmax(1)
        place = torch.arange(answers.shape[1], device=first.device)
        asked = place <= first[:, None]
        later = (~answers & ~asked).cumsum(1) > 0  # behind the first answer
        longest = int((answers & ~later).sum(1).max())
        ids, mask = to_left(batch["input_ids"], asked, stage.pad_token_id)
        student = self.duet if stage.kind == "align_large" else self.duet.tiny
        student.eval()
        said = student.generate(
            ids,
            image=image,
            attention_mask=mask,
            max_new_tokens=min(longest, self._room(ids, mask)),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=stage.stop_token_id,
            pad_token_id=stage.pad_token_id,
        )
        self.train(self.training)
        new = said[:, ids.shape[1] :]
        ended = (new == stage.stop_token_id).int().cumsum(1)
        is_said = ended - (new == stage.stop_token_id).int() == 0
        labels = torch.full_like(said, IGNORE)
        labels[:, ids.shape[1] - 1 : -1] = new.masked_fill(~is_said, IGNORE)
        return to_right(said, torch.cat([mask, is_said], dim=1), labels, stage.pad_token_id)

    def _room(self, ids: Tensor, mask: Tensor) -> int:
        """How many tokens can follow these prompts before either model runs out of positions."""
        return min(self.duet.tiny.room(ids), self.duet.room(ids, mask))


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
