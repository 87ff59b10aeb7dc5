"""Whether gradients reach what a stage trains, and nothing else; and how much that is, tower by tower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from limbeck.doctor.batches import TrainingSet, batch_of, spread_items
from limbeck.doctor.finding import Finding, count_of
from limbeck.method import Method, Stage
from limbeck.training.freeze import freeze

ROWS = 2
"""Rows of the batch."""
NOISE = 0.02
"""Spread of what stands in for maps that start as zero."""


def check_gradients(method: Method, stage: Stage, dataset: TrainingSet, device: torch.device) -> Finding:
    """One forward and backward pass of one small batch; the method is left as it was, but for its momentum.

    `stage` is the method's present one. A map that starts as zero keeps what lies before it from any gradient in the
    first step, so it is given noise for the time being.
    """
    check = f"gradients {stage.name}"
    names = freeze(method, stage.trainable, (*method.teachers(), *method.followers()))
    method.train()
    method.begin_stage(stage, 1)
    method.begin_step(0)
    batch = batch_of(dataset, spread_items(dataset, ROWS), device)
    with torch.random.fork_rng(devices=[]), noise_for_zeros(method) as noised:
        torch.manual_seed(0)
        loss = method(batch)
        terms = {name: float(term.detach()) for name, term in loss.terms.items()}
        total = loss.total
        if total.requires_grad:
            total.backward()
        found = {name: parameter.grad for name, parameter in method.named_parameters() if parameter.grad is not None}
        zero = [name for name, gradient in found.items() if not bool(gradient.any())]
        method.zero_grad(set_to_none=True)
    figures = {"trains": len(names), "reached": len(found), "zero": zero, "terms": terms, "noised": noised}
    bad = [name for name, value in terms.items() if not torch.isfinite(torch.tensor(value))]
    if bad:
        return Finding(check, "failed", f"the loss is not finite: {', '.join(bad)}", figures)
    extra = [name for name in found if name not in set(names)]
    if extra:
        return Finding(check, "failed", f"a gradient reaches what must not train: {by_module(extra)}", figures)
    missed = [name for name in names if name not in found]
    figures["missed"] = missed
    if missed and (stage.trainable or len(missed) == len(names)):
        return Finding(check, "failed", f"no gradient reaches what must train: {by_module(missed)}", figures)
    doubts = [f"no gradient for {by_module(missed)}"] * bool(missed) + [f"zero for {by_module(zero)}"] * bool(zero)
    losses = ", ".join(dict.fromkeys(name.partition("/")[0] for name in terms))
    said = f"reach {len(found) - len(zero)} of {len(names)} tensors and no other, from {losses}"
    aside = f"; {by_module(noised)} start as zero: noise stood in" if noised else ""
    return Finding(check, "warning" if doubts else "ok", "; ".join([said, *doubts]) + aside, figures)


@contextmanager
def noise_for_zeros(method: nn.Module) -> Iterator[list[str]]:
    """While open, matrices that train and are nothing but zeros hold noise; gives their names."""
    zeros = {
        name: parameter
        for name, parameter in method.named_parameters()
        if parameter.requires_grad and parameter.ndim > 1 and not bool(parameter.detach().any())
    }
    with torch.no_grad():
        for parameter in zeros.values():
            parameter.normal_(0, NOISE)
    try:
        yield list(zeros)
    finally:
        with torch.no_grad():
            for parameter in zeros.values():
                parameter.zero_()


def by_module(names: Sequence[str], count: int = 3) -> str:
    """Parameters' names, those of one module as one, the first few of them."""
    modules = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in names))
    more = f" and {len(modules) - count} modules more" if len(modules) > count else ""
    return f"{', '.join(modules[:count])}{more} ({len(names)} in all)"


def check_parameters(method: Method, towers: Sequence[str]) -> Finding:
    """How large each tower is, and in which stages it trains; a method on the meta device will do.

    `towers` are beginnings of parameters' names; what has none of them counts by its first name.
    """
    sizes: dict[str, int] = {}
    trains: dict[str, dict[str, int]] = {}
    for name, parameter in method.named_parameters():
        sizes[_tower(name, towers)] = sizes.get(_tower(name, towers), 0) + parameter.numel()
    totals = {}
    for stage in method.stages():
        names = set(freeze(method, stage.trainable, (*method.teachers(), *method.followers())))
        counts = dict.fromkeys(sizes, 0)
        for name, parameter in method.named_parameters():
            counts[_tower(name, towers)] += parameter.numel() if name in names else 0
        trains[stage.name], totals[stage.name] = counts, sum(counts.values())
    groups: dict[str, list[str]] = {}
    for tower, size in sizes.items():
        when = _when({stage: counts[tower] for stage, counts in trains.items()}, size)
        groups.setdefault(when, []).append(f"{tower} {count_of(size)}")
    lines = [f"{when}: {', '.join(said)}" for when, said in groups.items()]
    sums = ", ".join(f"{count_of(total)} in {stage}" for stage, total in totals.items())
    lines.append(f"of {count_of(sum(sizes.values()))} in all train {sums}")
    figures: dict[str, Any] = {"parameters": sizes, "trainable": trains}
    return Finding("parameters", "ok", "\n".join(lines), figures)


def _tower(name: str, towers: Sequence[str]) -> str:
    return next((tower for tower in towers if name.startswith(tower)), name.partition(".")[0])


def _when(counts: dict[str, int], size: int) -> str:
    """In which stages a tower trains."""
    trained = {stage: count for stage, count in counts.items() if count}
    said = [stage if count == size else f"{stage} ({count_of(count)})" for stage, count in trained.items()]
    return f"trains in {', '.join(said)}" if said else "frozen"
