"""DLIP: a CLIP, ALBEF or BLIP teacher compressed into a light student (Kuang et al., 2023).

    L_DLIP = L_VLP + L_AT + L_HR                                       (Eq. 6)

L_VLP is what the family is pre-trained with (contrastive, matching, language), L_HR pulls the last hidden states of
each tower towards the teacher's (Eq. 3), L_AT the attention distributions of each tower's last layer (Eqs. 4 and 5).
Soft targets from the teacher's predictions can be added (`logits`, ours).
Without a teacher the same method trains the plain student, or the teacher itself, or fine-tunes for one task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from pydantic import model_validator
from torch import Tensor, nn

from limbeck.config import Section
from limbeck.losses.attention import attention_kl
from limbeck.losses.hidden import cosine_distance, effective_rank
from limbeck.losses.reduce import masked_mean
from limbeck.method import Loss, Method, Stage
from limbeck.methods.logits import LOGIT_PASSES, LogitsConfig, LogitTerm, logits_loss
from limbeck.methods.passes import (
    BRINGS,
    CAPTION_PASSES,
    PASSES,
    QUESTION_PASSES,
    Model,
    Pairing,
    Pass,
    first_rows,
    lacking,
    multimodal,
    unimodal,
)
from limbeck.methods.projection import HiddenMap
from limbeck.methods.recompute import recompute
from limbeck.methods.sites import SITE_PASSES, AttentionConfig, HiddenConfig
from limbeck.methods.vlp import HEAD_TERMS, MEASURED_EVERY, TERM_PASSES, VLPConfig, VLPObjective
from limbeck.methods.weights import expand_weights
from limbeck.models.clip import DualEncoder
from limbeck.types import AttentionState, Batch, Signals

log = logging.getLogger(__name__)

LOWEST_RANK = 8
"""A mapped teacher of fewer effective directions is about to collapse (both maps of Eq. 3 learnt)."""


class DLIPConfig(Section):
    """What DLIP minimises."""

    vlp: VLPConfig = VLPConfig()
    hidden: HiddenConfig = HiddenConfig()
    attention: AttentionConfig = AttentionConfig()
    logits: LogitsConfig = LogitsConfig()
    kd_negatives: bool = False
    """whether the teacher also sees matching's hard negatives, or positive pairs only"""

    @model_validator(mode="after")
    def _negatives_are_here(self) -> DLIPConfig:
        if self.kd_negatives and self.vlp.contrastive.negatives == "all":
            raise ValueError(
                "kd_negatives: the teacher sees this process's pictures; set vlp.contrastive.negatives: rank"
            )
        return self


class DLIP(Method):
    """Student and teacher, the maps between their widths, and the losses between them.

    With `teacher` None the distillation terms are left out and what is left is plain vision-language pre-training.
    Raises ValueError where a weight or a site names what these models have no part for; a group, or all four sites,
    means those that are there.
    """

    def __init__(self, config: DLIPConfig, student: Model, teacher: Model | None, stages: Sequence[Stage]):
        super().__init__()
        self.settings = config
        self.student = student
        self.objective = VLPObjective(config.vlp, student)
        self.teacher = None if teacher is None else teacher.requires_grad_(False)
        self.missing = {name: _reason("student", student, part) for name, part in self.objective.missing.items()}
        """why the other terms that this config asks for are not there"""
        self.hidden_sites: dict[Pass, str] = {}
        self.attention_terms: dict[str, tuple[Pass, str]] = {}
        self.logit_terms: dict[str, LogitTerm] = {}
        self.projections = nn.ModuleDict()
        if teacher is not None:
            self._distil(config, student, teacher)
        self.plan = tuple(stages)
        for index, stage in enumerate(self.plan):
            expand_weights(stage.weights, self.terms(), self.missing, where=f"stages.{index}.weights")
        self.weights: dict[str, float] = {}
        self.step = 0

    def _distil(self, config: DLIPConfig, student: Model, teacher: Model) -> None:
        """The terms between student and teacher, and the maps that they need."""

        def missing(passes: Sequence[Pass], *, heads: bool = False) -> str | None:
            """What student or teacher lack for some passes, and what to do."""
            for role, model in (("student", student), ("teacher", teacher)):
                part = lacking(model, passes, heads=heads)
                if part is not None:
                    return _reason(role, model, part)
            return None

        reasons = {name: missing((name,)) for name in PASSES}
        for where, sites in (("hidden", config.hidden.sites), ("attention", config.attention.sites)):
            for site in sites if set(sites) != set(SITE_PASSES) else ():
                reason = reasons[SITE_PASSES[site][0]]
                if all(reasons[name] for name in SITE_PASSES[site]):
                    raise ValueError(f"dlip.{where}.sites: {site}: {reason}")
        for name in config.logits.sites:
            reason = missing(LOGIT_PASSES[name], heads=name in HEAD_TERMS)
            if reason is not None:
                raise ValueError(f"dlip.logits.sites: {name}: {reason}")
            self.logit_terms[f"logits/{name}"] = name
        for site in config.hidden.sites:
            for name in SITE_PASSES[site]:
                if (reason := reasons[name]) is None:
                    self.hidden_sites[name] = site
                else:
                    self.missing[f"hidden/{name}"] = reason
        for site in dict.fromkeys(self.hidden_sites.values()):
            self.projections[site] = HiddenMap(_width(student, site), _width(teacher, site), config.hidden.hr_map)
        kept = [site for site in config.attention.sites if site != "img" or _keeps_vision(config, student, teacher)]
        for name in (name for site in kept for name in SITE_PASSES[site]):
            for kind in config.attention.maps:
                if kind == "cross" and name in ("image", "text"):
                    continue
                if (reason := reasons[name]) is None:
                    self.attention_terms[f"attention/{name}/{kind}"] = (name, kind)
                else:
                    self.missing[f"attention/{name}/{kind}"] = reason

    def stages(self) -> Iterator[Stage]:
        """The plan. After a stage without contrast the momentum encoders, which rested, are where the student is."""
        for stage in self.plan:
            yield stage
            self.objective.end_stage(self.student, expand_weights(stage.weights, self.terms()))

    def terms(self) -> tuple[str, ...]:
        """Every loss term that these models and this config allow."""
        hidden = (f"hidden/{name}" for name in self.hidden_sites)
        return (*self.objective.terms(), *hidden, *self.attention_terms, *self.logit_terms)

    def caption_terms(self, stage: Stage) -> tuple[str, ...]:
        """What a stage trains, by terms with a weight, that looks at captions."""
        weights = expand_weights(stage.weights, self.terms())
        return tuple(
            term
            for term, weight in weights.items()
            if weight and (term == "masked_language" or not self._passes(term).isdisjoint(CAPTION_PASSES))
        )

    def question_terms(self, stage: Stage) -> tuple[str, ...]:
        """What a stage weighs by name that looks at nothing but questions and answers."""
        named = (term for term in stage.weights if term in self.terms() and stage.weights[term])
        return tuple(term for term in named if not self._passes(term).isdisjoint(QUESTION_PASSES))

    def _passes(self, term: str) -> set[Pass]:
        """The passes that a term looks at."""
        if term in TERM_PASSES:
            return set(TERM_PASSES[term])
        if term in self.logit_terms:
            return set(LOGIT_PASSES[self.logit_terms[term]])
        return {term.split("/")[1]}

    def teachers(self) -> tuple[str, ...]:
        return ("teacher",)

    def followers(self) -> tuple[str, ...]:
        return ("objective",)

    def train(self, mode: bool = True) -> DLIP:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """What TrainingArguments' `gradient_checkpointing` asks of a model: the student's layers keep no activations.

        Raises ValueError for `offload`, which DLIP does not do.
        """
        if offload:
            raise ValueError("gradient_checkpointing_kwargs: offload: true is not there for DLIP; leave it out")
        recompute(self.student, activation_checkpointing_kwargs, every_n_layers)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """The same, as earlier versions of transformers ask it."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, every_n_layers, offload)

    def begin_stage(self, stage: Stage, steps_per_epoch: int) -> None:
        self.weights = expand_weights(stage.weights, self.terms())
        self.objective.begin_stage(self.weights, steps_per_epoch)

    def begin_step(self, step: int) -> None:
        self.step = step
        self.objective.begin_step(self.student, step)

    def forward(self, batch: Batch) -> Loss:
        wanted = {name for name, weight in self.weights.items() if weight}
        hidden = [name for name in self.hidden_sites if f"hidden/{name}" in wanted]
        attention = {term: where for term, where in self.attention_terms.items() if term in wanted}
        logits: list[LogitTerm] = [site for term, site in self.logit_terms.items() if term in wanted]
        capture = {name for name, _ in attention.values()}
        needed = capture.union(hidden, *(LOGIT_PASSES[site] for site in logits))
        student, terms, pairing = self.objective(self.student, batch, wanted, needed, capture)
        state = {"temperature": self.student.temperature.detach(), **self.objective.state()}
        if needed:
            assert self.teacher is not None
            if pairing is not None and not self.settings.kd_negatives:
                student["fused"] = first_rows(student["fused"], len(batch["input_ids"]))
            with torch.no_grad():
                teacher = self._teach(batch, needed, capture, pairing)
            for name in (name for name in hidden if name in student):
                terms[f"hidden/{name}"], rank = self._hidden(name, student[name], teacher[name], batch)
                state |= rank
            for term, (name, kind) in attention.items():
                if name in student:
                    terms[term] = self._attention(kind, name, student[name], teacher[name], batch)
            models, prompt = (self.student, self.teacher), self.settings.vlp.prompt_tokens
            for site in logits:
                if set(LOGIT_PASSES[site]) <= set(student):
                    soft = logits_loss(site, models, student, teacher, batch, self.settings.logits, prompt)
                    terms[f"logits/{site}"] = soft
        if not terms:  # nothing of this batch is asked for: no question in it, say
            terms = dict.fromkeys(sorted(wanted), 0 * self.student.temperature)
        return Loss(terms=terms, weights={name: self.weights[name] for name in terms}, state=state)

    def _teach(
        self, batch: Batch, needed: set[Pass], capture: set[Pass], pairing: Pairing | None
    ) -> dict[Pass, Signals]:
        """The teacher's passes over what the student saw: positive pairs alone, or the student's negatives too."""
        assert self.teacher is not None
        dtype = self.teacher.temperature.dtype
        seen: Batch = {**batch, "pixel_values": batch["pixel_values"].to(dtype)}
        names = needed | ({"image"} if needed - {"text"} else set())
        signals = unimodal(self.teacher, seen, names, capture)
        if not isinstance(self.teacher, DualEncoder) and names - {"image", "text"}:
            if pairing is not None:
                own = signals["image"].hidden
                seen_pool = pairing.pool._replace(hidden=own)
                pairing = pairing._replace(pool=seen_pool) if self.settings.kd_negatives else None
            signals |= multimodal(self.teacher, seen, signals["image"], names, capture, pairing)
        return signals

    def _hidden(self, name: Pass, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 3 at one pass: 1 - cosine of the mapped last hidden states, mean over real tokens."""
        taught, learned = self.projections[self.hidden_sites[name]](teacher.hidden, student.hidden)
        distance = cosine_distance(learned, taught)
        state = {}
        if self.settings.hidden.hr_map == "paper" and self.step % MEASURED_EVERY == 0:
            rank = effective_rank(taught.detach().flatten(0, 1)[:512])
            if rank < LOWEST_RANK:
                log.warning("hidden/%s: what the teacher is mapped to varies in %.1f directions only", name, rank)
            state[f"effective_rank/{name}"] = rank
        return masked_mean(distance, student.mask, count=_tokens(name, student, batch)), state

    def _attention(self, kind: str, name: Pass, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Eq. 5 for one map: KL of the student's from the teacher's distribution, mean over heads and real queries."""
        states: list[AttentionState] = []
        for signals in (student, teacher):
            found = signals.self_attention if kind == "self" else signals.cross_attention
            assert found is not None
            states.append(found)
        return attention_kl(
            *states,
            row_mask=student.mask,
            head_map=self.settings.attention.head_map,
            count=_tokens(name, student, batch),
        )


def _reason(role: str, model: Model, part: str) -> str:
    """That a model lacks a part, and what to do."""
    family = model.config.family
    if role == "student" and part == "answer decoder":
        way = "student.answer_decoder: separate makes one (tied, both towers must have one width); else"
    elif role == "teacher" and family == "blip":
        way = f"a {BRINGS[part]} checkpoint as another folder in teacher.folders brings it; else"
    else:
        way = "give one that has it, or"
    return f"the {role} ({family}) has no {part}: {way} leave this out"


def _keeps_vision(config: DLIPConfig, student: Model, teacher: Model) -> bool:
    """Whether image attention is distilled: `skip_vision` leaves it out where numbers of heads differ."""
    same = student.config.vision.heads == teacher.config.vision.heads
    return same or config.attention.head_map != "skip_vision"


def _width(model: Model, site: str) -> int:
    return model.config.vision.width if site == "img" else model.config.text.width


def _tokens(name: str, signals: Signals, batch: Batch) -> Tensor:
    """How many tokens of a pass the whole optimizer step holds; with hard negatives a fused one has three for each."""
    counts = batch["counts"]
    match name:
        case "image":
            return counts.pairs * signals.hidden.shape[1]
        case "question":
            return counts.question_tokens
        case "answer":
            return counts.answer_tokens
    return counts.tokens * (len(signals.hidden) / len(batch["input_ids"]))
