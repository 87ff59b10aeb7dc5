"""A teacher that is compared with itself: its divergence is zero, or what is learned from it is noise."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.doctor.batches import TrainingSet, batch_of, spread_items
from limbeck.doctor.finding import Finding
from limbeck.losses.divergence import linear_divergence
from limbeck.methods.ctvlm import CTVLM, DuetStage
from limbeck.types import ConversationBatch

ROWS = 2
"""Rows of the batch."""
NOTHING = 1e-4
"""Nats a token below which a divergence is rounding."""

Side = tuple[Tensor, Tensor]
"""Hidden states [A, E] at the supervised tokens, and the head [V, E]"""


def check_agreement(method: CTVLM, dataset: TrainingSet, device: torch.device) -> Finding:
    """Both models, twice over one batch: each agrees with itself, and the two are a finite way apart."""
    check = "teacher = itself"
    method.eval()
    batch = batch_of(dataset, spread_items(dataset, ROWS), device)
    with torch.no_grad():
        first, second = (predictions(method, batch) for _ in range(2))
        own = {role: _both(first[role], second[role], method.vocabulary) for role in first}
        apart = _both(first["large"], first["tiny"], method.vocabulary)
    figures = {"own": own, "tiny_and_large": apart}
    everything = torch.tensor([*own["tiny"], *own["large"], *apart])
    if not bool(torch.isfinite(everything).all()):
        text = f"a divergence is not finite: tiny {own['tiny']}, large {own['large']}, between them {apart}"
        return Finding(check, "failed", text, figures)
    wrong = [f"{max(values):.2g} for the {role} model" for role, values in own.items() if max(values) > NOTHING]
    if wrong:
        text = f"a model's divergence from itself must be 0; it is {', '.join(wrong)} (nats a token)"
        return Finding(check, "failed", text, figures)
    noisy = _noisy(method, batch)
    text = (
        f"0 nats a token for both models in both directions; KL(tiny || large) {apart[0]:.2f}, "
        f"KL(large || tiny) {apart[1]:.2f}"
    )
    if noisy:
        said = [f"{value:.2g} in stage {stage}" for stage, value in noisy.items()]
        doubt = f"while it trains, dropout sets the teacher apart from itself: {', '.join(said)}"
        return Finding(check, "warning", f"{text}; {doubt}", figures | {"training": noisy})
    return Finding(check, "ok", text, figures)


def predictions(method: CTVLM, batch: ConversationBatch) -> dict[str, Side]:
    """What each model says at the supervised tokens."""
    image = method.duet.tiny.see(batch["pixel_values"])
    tiny, large = method.answer(batch["input_ids"], batch["attention_mask"], batch["labels"], image)
    assert large is not None
    return {"tiny": (tiny.hidden, tiny.head), "large": (large.hidden, large.head)}


def _both(student: Side, teacher: Side, vocabulary: int) -> tuple[float, float]:
    """KL(teacher || student) and KL(student || teacher), nats a token."""
    weight = student[0].new_full((len(student[0]),), 1 / len(student[0]))
    with torch.no_grad():
        forward = linear_divergence(*student, *teacher, weight, kind="forward", vocabulary=vocabulary)
        reverse = linear_divergence(*student, *teacher, weight, kind="reverse", vocabulary=vocabulary)
    return float(forward.detach()), float(reverse.detach())


def _noisy(method: CTVLM, batch: ConversationBatch) -> dict[str, float]:
    """By stage, how far its teacher, as it is while training, is from itself; only where it is not 0."""
    found = {}
    for stage in method.stages():
        assert isinstance(stage, DuetStage)
        if stage.kd == "none":
            continue
        method.train()
        role = "tiny" if stage.kind == "align_large" else "large"
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first, second = (predictions(method, batch)[role] for _ in range(2))
        distance = max(_both(first, second, method.vocabulary))
        if distance > NOTHING:
            found[stage.name] = distance
    return found
