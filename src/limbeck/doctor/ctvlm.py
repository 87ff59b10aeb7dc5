"""A CTVLM recipe examined: what `ctvlm_checks` sees, and what takes longer or is for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import TrainingArguments

from limbeck.assemble.ctvlm import build_dialogues, build_method, build_models, open_sources
from limbeck.assemble.writers import open_tokenizer
from limbeck.data.conversations import Conversations, ConversationSource, group_starts
from limbeck.data.dialogue_set import Dialogues
from limbeck.data.examples import DataError
from limbeck.distributed import device_here
from limbeck.doctor.benchmarks import check_benchmarks
from limbeck.doctor.ctvlm_checks import check_templates, model_checks
from limbeck.doctor.finding import REST, Finding, broken, count_of, failed, tried
from limbeck.doctor.gradients import check_parameters
from limbeck.doctor.machine import free_memory, rooms
from limbeck.doctor.memory import Layers, Need, check_memory, need_of
from limbeck.doctor.speed import check_speed, stage_arguments
from limbeck.doctor.standin import BYTES, LARGEST, LAYERS, Size, shortened, size_of, whole_method
from limbeck.doctor.texts import check_tokenizer
from limbeck.methods.ctvlm import CTVLM
from limbeck.models.duet_cross import repeated_layers
from limbeck.recipe.ctvlm import CTVLMRecipe
from limbeck.recipe.shared import RecipeError

SAMPLE = 256
"""Conversations of each stage that are read."""
TOWERS = (
    "duet.tiny.eye",
    "duet.tiny.connector",
    "duet.tiny.table",
    "duet.tiny.project",
    "duet.tiny.body",
    "duet.tiny.cross",
    "duet.connector",
    "duet.large",
    "heads",
)
"""Beginnings of parameters' names."""


def examine_ctvlm(recipe: CTVLMRecipe, *, steps: bool, memory: float | None, processes: int) -> list[Finding]:
    """Every check. Raises RecipeError or DataError where recipe or data cannot be read at all."""
    found = _examine_training(recipe, steps=steps, memory=memory, processes=processes)
    benchmarks = recipe.evaluation.benchmarks
    return [*found, check_benchmarks(benchmarks, Path(recipe.data.root))] if benchmarks else found


def _examine_training(recipe: CTVLMRecipe, *, steps: bool, memory: float | None, processes: int) -> list[Finding]:
    arguments = stage_arguments(recipe, recipe.stages)
    sources = open_sources(recipe)
    tokenizer = open_tokenizer(recipe.tokenizer, Path(recipe.data.root), sources.values())
    findings = [check_tokenizer(tokenizer, recipe.duet.large.folder), *check_templates(recipe, tokenizer, sources)]
    if failed(findings):
        return [*findings, REST]
    count = max(SAMPLE, *(each.train_batch_size for each in arguments.values()))
    samples = {name: sampled(source, count) for name, source in sources.items()}
    sizes = {
        role: size_of(choice, len(tokenizer))
        for role, choice in (("tiny", recipe.duet.tiny), ("large", recipe.duet.large))
    }
    device, cut = device_here(), not fits_here(sizes)
    with TemporaryDirectory() as folder:
        used = shortened(recipe, sizes, Path(folder)) if cut else recipe
        try:
            duet = build_models(used, tokenizer)
            method = build_method(used, duet, tokenizer)
        except (RecipeError, DataError, ValueError, OSError) as error:
            return [*findings, Finding("models", "failed", str(error)), REST]
        try:
            datasets = build_dialogues(used, samples, tokenizer, duet)
        except DataError as error:
            return [*findings, Finding("data", "failed", str(error)), REST]
        if cut:
            findings.append(_say_cut(sizes))
        findings += model_checks(recipe, tokenizer, method, datasets, device, tries=True)
        method.to(device)
        whole = whole_method(method, sizes, recipe) if cut else method
        findings.append(check_parameters(whole, TOWERS))
        measured = f"on the first {LAYERS} layers of what is large, on {device}" if cut else f"on {device}"
        try:
            found, needs = _memory(method, whole, sizes, datasets, arguments, memory, measured, processes)
        except Exception as error:  # whatever stops a forward pass would have stopped training
            return [*findings, broken("memory", error)]
        findings.append(found)
    if steps:
        here = next(iter(rooms(None).items()))
        items = {name: _items(sources[name], datasets[name]) for name in datasets}
        too_large = [name for name, need in needs.items() if need.largest(here[1]) < arguments[name].train_batch_size]
        if cut or too_large or failed(findings):
            why = "some check failed" if failed(findings) else f"the models are too large for {here[0]}"
            findings.append(Finding("speed", "skipped", f"no steps tried: {why}"))
        else:
            findings.append(
                tried("speed", lambda: check_speed(method, recipe, arguments, datasets, items, here[0], processes))
            )
    return findings


def fits_here(sizes: Mapping[str, Size]) -> bool:
    """Whether the whole models can be held, with gradients and something to spare, where they would be tried."""
    weights = sum(size.weights for size in sizes.values())
    if torch.cuda.is_available():
        return BYTES * weights * 1.2 <= free_memory() and BYTES * weights * 2.5 <= torch.cuda.mem_get_info()[0]
    return weights <= LARGEST and BYTES * weights * 2.5 <= free_memory()


def _say_cut(sizes: Mapping[str, Size]) -> Finding:
    said = [f"{role} {count_of(size.weights)} weights in {size.layers} layers" for role, size in sizes.items()]
    text = (
        f"too large to be tried here ({', '.join(said)}): what follows is measured with the first {LAYERS} layers of "
        "what is large; parameters are counted whole, and memory is reckoned up from those layers"
    )
    return Finding("models", "ok", text, {role: size._asdict() for role, size in sizes.items()})


def sampled(source: ConversationSource, count: int) -> ConversationSource:
    """About so many conversations of a source, each of another group, evenly spaced."""
    starts = group_starts(source)[:-1]
    chosen = starts[np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).astype(np.int64))]
    made = Conversations(len(chosen), lambda index: source.conversations[int(chosen[index])])
    return ConversationSource(name=source.name, conversations=made)


def _items(source: ConversationSource, dataset: Dialogues) -> int:
    """The length of the whole training set, by the share of the sample that fits."""
    return round((len(group_starts(source)) - 1) * len(dataset) / len(dataset.source.conversations))


def _memory(
    method: CTVLM,
    whole: CTVLM,
    sizes: Mapping[str, Size],
    datasets: Mapping[str, Dialogues],
    arguments: Mapping[str, TrainingArguments],
    memory: float | None,
    measured: str,
    processes: int,
) -> tuple[Finding, dict[str, Need]]:
    """Every stage's need, and the finding about all."""
    config = method.duet.config
    parts = (
        ("tiny", method.duet.tiny.body, config.tiny_part.text_part),
        ("large", method.duet.large, config.large_part),
    )
    layers = [
        Layers(list(repeated_layers(model, text.num_hidden_layers)), sizes[role].layers) for role, model, text in parts
    ]
    needs, tokens = {}, {}
    for stage, own in zip(method.stages(), whole.stages(), strict=True):
        needs[stage.name], tokens[stage.name] = need_of(
            method, whole, own, datasets[stage.name], arguments[stage.name], layers, next(method.parameters()).device
        )
    found = rooms(memory)
    return check_memory(needs, arguments, tokens, found, next(iter(found)), measured, processes), needs
