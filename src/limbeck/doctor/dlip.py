"""A DLIP recipe examined, as far as what goes wrong there can be seen before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limbeck.assemble.dlip import (
    build_method,
    build_student,
    build_teacher,
    check_evaluation,
    check_texts,
    open_data,
    open_tokenizer,
)
from limbeck.data.dataset import Pairs
from limbeck.data.examples import DataError, Examples, Source
from limbeck.distributed import device_here
from limbeck.doctor.finding import REST, Finding, broken, failed, refuse, tried
from limbeck.doctor.gradients import check_gradients, check_parameters
from limbeck.doctor.machine import rooms
from limbeck.doctor.memory import check_memory, need_of
from limbeck.doctor.speed import check_speed, stage_arguments
from limbeck.doctor.weights import Pretrained, check_weights
from limbeck.evaluation.evaluate import load_tasks
from limbeck.methods.passes import Model
from limbeck.models.families import build_model
from limbeck.recipe.dlip import DLIPRecipe
from limbeck.recipe.shared import RecipeError

SAMPLE = 256
"""Examples that are read."""


class _Sampled(Examples):
    """About so many examples of a sequence, evenly spaced."""

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._chosen = np.unique(np.linspace(0, len(source.examples) - 1, min(count, len(source.examples))).astype(int))

    def __len__(self) -> int:
        return len(self._chosen)

    def at(self, index: int):
        return self._source.examples[int(self._chosen[index])]


def examine_dlip(recipe: DLIPRecipe, *, steps: bool, memory: float | None, processes: int) -> list[Finding]:
    """Every check. Raises RecipeError or DataError where recipe or data cannot be read at all."""
    arguments = stage_arguments(recipe, recipe.stages)
    source = open_data(recipe)
    tokenizer = open_tokenizer(recipe, source)
    device = device_here()
    count = max(SAMPLE, *(each.train_batch_size for each in arguments.values()))
    sample = Source(name=source.name, examples=_Sampled(source, count))
    try:
        teacher = build_teacher(recipe, tokenizer)
        student = build_student(recipe, tokenizer, teacher)
        method = build_method(recipe, student, teacher)
        tasks = load_tasks(recipe.evaluation, Path(recipe.data.root))
        check_evaluation(recipe, tasks, source.examples, student, teacher)
        pairs = Pairs(sample, tokenizer, recipe.data.transform, recipe.data.pairs, seed=recipe.seed)
        check_texts(method, pairs)
    except (RecipeError, DataError, ValueError, OSError) as error:
        return [Finding("models", "failed", str(error)), REST]
    text = f"{len(tokenizer):,} tokens, as many as the models have rows"
    findings = [Finding("tokenizer", "ok", text, {"tokens": len(tokenizer)})]
    findings += [check_weights(part) for part in pretrained_parts(recipe, student, teacher)]
    if failed(findings):
        return [*findings, REST]
    method.to(device)
    for stage in method.stages():
        check = f"gradients {stage.name}"
        findings.append(tried(check, lambda stage=stage: check_gradients(method, stage, pairs, device)))
    roots = [name for name, _ in method.named_children()]
    towers = [f"{root}.{name}" for root in roots for name, _ in method.get_submodule(root).named_children()]
    findings.append(check_parameters(method, towers))
    try:
        found = {
            stage.name: need_of(method, method, stage, pairs, arguments[stage.name], (), device)
            for stage in method.stages()
        }
    except Exception as error:  # whatever stops a forward pass would have stopped training
        return [*findings, broken("memory", error)]
    needs = {name: need for name, (need, _) in found.items()}
    tokens = {name: length for name, (_, length) in found.items()}
    room = rooms(memory)
    here = next(iter(room))
    findings.append(check_memory(needs, arguments, tokens, room, here, f"on {device}", processes))
    if steps:
        datasets = dict.fromkeys(needs, pairs)
        items = dict.fromkeys(needs, round(len(pairs) * len(source.examples) / len(sample.examples)))
        if failed(findings) or any(need.largest(room[here]) < 1 for need in needs.values()):
            findings.append(Finding("speed", "skipped", "no steps tried: a check failed, or there is no room"))
        else:
            findings.append(
                tried("speed", lambda: check_speed(method, recipe, arguments, datasets, items, here, processes))
            )
    return findings


def refuse_untrained(recipe: DLIPRecipe, student: Model, teacher: Model | None) -> None:
    """What a run looks at by itself: raise RecipeError where a pretrained part holds zeros or first weights."""
    refuse([check_weights(part) for part in pretrained_parts(recipe, student, teacher)])


def pretrained_parts(recipe: DLIPRecipe, student: Model, teacher: Model | None) -> list[Pretrained]:
    """The teacher, and what the student has from a folder."""
    parts, config = [], recipe.student
    if recipe.teacher is not None and teacher is not None:
        origin = " + ".join(recipe.teacher.folders)
        parts.append(Pretrained("teacher", origin, teacher, lambda: build_model(teacher.config)))
    if config.folder is not None:
        parts.append(Pretrained("student", config.folder, student, lambda: build_model(student.config)))
    for tower, origin in (("vision", config.initial_vision), ("text", config.initial_text)):
        if origin not in ("random", "teacher"):
            parts.append(_tower(tower, origin, student))
    return parts


def _tower(tower: str, origin: str, student: Model) -> Pretrained:
    def fresh():
        return build_model(student.config).get_submodule(tower)

    return Pretrained(f"student.{tower}", origin, student.get_submodule(tower), fresh)
