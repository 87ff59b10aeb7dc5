"""DLIP: a CLIP, ALBEF or BLIP teacher compressed into a light student (Kuang et al., 2023).

    L_DLIP = L_VLP + L_AT + L_HR                                       (Eq. 6)

L_VLP is what the family is pre-trained with (contrastive, matching, language), L_HR pulls the last hidden states of
each tower towards the teacher's (Eq. 3), L_AT the attention distributions of each tower's last layer (Eqs. 4 and 5).
Soft targets from the teacher's predictions can be added (`logits`, ours).
Without a teacher the same method trains the plain student, or the teacher itself, or fine-tunes for one task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from limbeck.config import Section
from limbeck.losses.attention import HeadMap, attention_kl
from limbeck.losses.hidden import cosine_distance, effective_rank
from limbeck.losses.reduce import masked_mean
from limbeck.method import Loss, Method, Stage
from limbeck.methods.logits import LOGIT_PASSES, LogitsConfig, LogitTerm, logits_loss
from limbeck.methods.passes import Model, Pairing, Pass, first_rows, multimodal, passes_of, unimodal
from limbeck.methods.projection import HiddenMap, HRMap
from limbeck.methods.vlp import VLPConfig, VLPObjective
from limbeck.models.clip import DualEncoder
from limbeck.types import AttentionState, Batch, Counts, Signals

log = logging.getLogger(__name__)

Site = Literal["img", "text", "vl_e", "vl_d"]
"""DLIP's Table 3: image tower, unimodal text, fused text in the encoder, fused text in the decoder."""

SITE_PASSES: Mapping[str, tuple[Pass, ...]] = {
    "img": ("image",),
    "text": ("text",),
    "vl_e": ("fused", "question"),
    "vl_d": ("decoded", "answer"),
}
"""The passes whose last layer a site looks at, those over questions where a batch has some."""


LOWEST_RANK = 8
"""A mapped teacher of fewer effective directions is about to collapse (both maps of Eq. 3 learnt)."""


class HiddenConfig(Section):
    """Hidden distillation (Eq. 3)."""

    sites: tuple[Site, ...] = ("img", "text", "vl_e", "vl_d")
    """which towers' last hidden states are pulled towards the teacher's"""
    hr_map: HRMap = "student"
    """`student`: a learned map from the student's width to the teacher's; `paper_frozen`: teacher through a fixed
    orthogonal map, student through a learned one; `paper`: both learned, which can collapse (watch effective_rank)"""


class AttentionConfig(Section):
    """Attention distillation (Eqs. 4 and 5)."""

    sites: tuple[Site, ...] = ("img", "text", "vl_e", "vl_d")
    """which towers' attention is distilled"""
    maps: tuple[Literal["self", "cross"], ...] = ("self", "cross")
    """self-attention, cross-attention (Table 4)"""
    head_map: HeadMap = "group_mean"
    """how unequal numbers of heads meet"""


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
    Raises ValueError where a weight names a term that these models do not have.
    """

    def __init__(self, config: DLIPConfig, student: Model, teacher: Model | None, stages: Sequence[Stage]):
        super().__init__()
        self.settings = config
        self.student = student
        self.objective = VLPObjective(config.vlp, student)
        self.teacher = None if teacher is None else teacher.requires_grad_(False)
        shared = [name for name in passes_of(student) if name in passes_of(teacher or student)]
        self.hidden_sites: dict[Pass, str] = {}
        self.attention_terms: dict[str, tuple[Pass, str]] = {}
        self.logit_terms: dict[str, LogitTerm] = {}
        self.projections = nn.ModuleDict()
        if teacher is not None:
            self.logit_terms = {
                f"logits/{name}": name for name in config.logits.sites if set(LOGIT_PASSES[name]) <= set(shared)
            }
            self.hidden_sites = {
                name: site for site in config.hidden.sites for name in SITE_PASSES[site] if name in shared
            }
            for site in dict.fromkeys(self.hidden_sites.values()):
                self.projections[site] = HiddenMap(_width(student, site), _width(teacher, site), config.hidden.hr_map)
            kept = [site for site in config.attention.sites if site != "img" or _keeps_vision(config, student, teacher)]
            for name in (name for site in kept for name in SITE_PASSES[site] if name in shared):
                maps = [kind for kind in config.attention.maps if kind == "self" or name not in ("image", "text")]
                self.attention_terms.update({f"attention/{name}/{kind}": (name, kind) for kind in maps})
        self.plan = tuple(stages)
        for index, stage in enumerate(self.plan):
            expand_weights(stage.weights, self.terms(), where=f"stages.{index}.weights")
        self.weights: dict[str, float] = {}
        self.step = 0

    def stages(self) -> Iterator[Stage]:
        yield from self.plan

    def terms(self) -> tuple[str, ...]:
        """Every loss term that these models and this config allow."""
        hidden = (f"hidden/{name}" for name in self.hidden_sites)
        return (*self.objective.terms(), *hidden, *self.attention_terms, *self.logit_terms)

    def teachers(self) -> tuple[str, ...]:
        return ("teacher",)

    def followers(self) -> tuple[str, ...]:
        return ("objective",)

    def train(self, mode: bool = True) -> DLIP:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

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
        state = {"temperature": self.student.temperature.detach()}
        if self.objective.momentum is not None:
            state["alpha"] = state["temperature"].new_tensor(self.objective.alpha)
        if needed:
            assert self.teacher is not None
            if pairing is not None and not self.settings.kd_negatives:
                student["fused"] = first_rows(student["fused"], len(batch["input_ids"]))
            with torch.no_grad():
                teacher = self._teach(batch, needed, capture, pairing)
            for name in (name for name in hidden if name in student):
                terms[f"hidden/{name}"], rank = self._hidden(name, student[name], teacher[name], batch["counts"])
                state |= rank
            for term, (name, kind) in attention.items():
                if name in student:
                    terms[term] = self._attention(kind, name, student[name], teacher[name], batch["counts"])
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

    def _hidden(
        self, name: Pass, student: Signals, teacher: Signals, counts: Counts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 3 at one pass: 1 - cosine of the mapped last hidden states, mean over real tokens."""
        taught, learned = self.projections[self.hidden_sites[name]](teacher.hidden.float(), student.hidden)
        distance = cosine_distance(learned, taught)
        state = {}
        if self.settings.hidden.hr_map == "paper" and self.step % 100 == 0:
            rank = effective_rank(taught.detach().flatten(0, 1)[:512])
            if rank < LOWEST_RANK:
                log.warning("hidden/%s: what the teacher is mapped to varies in %.1f directions only", name, rank)
            state[f"effective_rank/{name}"] = rank
        return masked_mean(distance, student.mask, count=_tokens(name, student, counts)), state

    def _attention(self, kind: str, name: Pass, student: Signals, teacher: Signals, counts: Counts) -> Tensor:
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
            count=_tokens(name, student, counts),
        )


def expand_weights(weights: Mapping[str, float], terms: Sequence[str], where: str = "weights") -> dict[str, float]:
    """Weight by term, from weights by term or by group (`hidden` for every `hidden/...`); the longer name wins.

    No weights at all mean 1 for each term. Raises ValueError for a name that is neither a term nor a group.
    """
    if not weights:
        return dict.fromkeys(terms, 1.0)
    groups = {"/".join(term.split("/")[:depth]) for term in terms for depth in range(1, term.count("/") + 2)}
    for name in weights:
        if name not in groups:
            near = get_close_matches(name, groups, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{where}: there is no loss term {name!r}{hint} (these models have {', '.join(sorted(groups))})"
            )
    expanded = {}
    for term in terms:
        prefixes = [name for name in weights if term == name or term.startswith(f"{name}/")]
        expanded[term] = weights[max(prefixes, key=len)] if prefixes else 0.0
    return expanded


def _keeps_vision(config: DLIPConfig, student: Model, teacher: Model) -> bool:
    """Whether image attention is distilled: `skip_vision` leaves it out where numbers of heads differ."""
    same = student.config.vision.heads == teacher.config.vision.heads
    return same or config.attention.head_map != "skip_vision"


def _width(model: Model, site: str) -> int:
    return model.config.vision.width if site == "img" else model.config.text.width


def _tokens(name: str, signals: Signals, counts: Counts) -> Tensor:
    """How many tokens of a pass the whole optimizer step holds."""
    match name:
        case "image":
            return counts.pairs * signals.hidden.shape[1]
        case "question":
            return counts.question_tokens
        case "answer":
            return counts.answer_tokens
    return counts.tokens
