"""A DLIP recipe's run from first to last: train, keep the student, evaluate, profile, pick examples for the page.

The run folder:

    recipe.yaml  environment.json  log.jsonl  skipped.jsonl
    stages/<stage>/   checkpoints, and the finished stage's weights
    student/          the trained model with its tokenizer; `limbeck evaluate`, `profile` and other recipes take it
    export/<task>/    transformers folders
    evaluation/  profile.json  gallery/
    teacher/          the same three of the teacher
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from limbeck.assemble.dlip import (
    build_method,
    build_pairs,
    build_student,
    build_teacher,
    check_evaluation,
    check_texts,
    examples_of,
    open_data,
    open_teacher,
    open_tokenizer,
)
from limbeck.assemble.shared import build_schedule
from limbeck.data.examples import Example, number_of
from limbeck.data.tokenizer import FolderTokenizer, load_tokenizer
from limbeck.distributed import device_here, rank
from limbeck.doctor import refuse_untrained
from limbeck.doctor.speed import stage_arguments
from limbeck.errors import TRAINING_BEGAN
from limbeck.evaluation.attention_view import attention_view
from limbeck.evaluation.evaluate import evaluate, load_tasks
from limbeck.evaluation.profile import profile
from limbeck.evaluation.vqa import common_answers
from limbeck.methods.passes import Model
from limbeck.models.convert import export
from limbeck.models.files import fingerprint
from limbeck.models.hub import shipped
from limbeck.models.load import load_model
from limbeck.recipe import DLIPRecipe, RecipeError
from limbeck.runs.folder import claim_evaluation, record, refuse_another_recipe, whole_folder
from limbeck.runs.gallery import save_picture
from limbeck.training.run import TrainingData, run_stages
from limbeck.training.skips import SkipLog
from limbeck.writing import write_text

log = logging.getLogger(__name__)

GALLERY_SIZE = 8
"""Pictures of the page on which models are shown side by side."""
SPEED = {"batch_size", "pair_batch", "workers"}
"""Settings of a task that change no result."""


def run_dlip(recipe: DLIPRecipe) -> Path:
    """Do all that a recipe says, going on where an earlier call was cut off. Returns the run folder.

    Of several processes (torchrun) all train, and the first one alone does what comes after.
    Everything that can be checked is checked before training starts. Raises RecipeError, DataError, ValueError.
    """
    folder = Path(recipe.output)
    started = time.time()
    stage_arguments(recipe, recipe.stages)
    root = Path(recipe.data.root)
    tasks = load_tasks(recipe.evaluation, root)
    refuse_another_recipe(folder, recipe)
    source = open_data(recipe)
    student_folder = folder / "student"
    tokenizer = open_tokenizer(recipe, source)
    if not (student_folder / "config.json").exists():
        teacher = build_teacher(recipe, tokenizer)
        student = build_student(recipe, tokenizer, teacher)
        method = build_method(recipe, student, teacher)
        check_evaluation(recipe, tasks, source.examples, student, teacher)
        pairs = build_pairs(recipe, source, tokenizer)
        check_texts(method, pairs)
        refuse_untrained(recipe, student, teacher)
        skipped = SkipLog(folder / "skipped.jsonl", len(source.examples) + len(source.skipped), recipe.data.max_skipped)
        skipped.add(source.skipped)
        record(folder, recipe, pairs.fingerprint())
        run_stages(
            method,
            lambda stage: TrainingData(pairs, pairs.collate),
            folder=folder,
            seed=recipe.seed,
            training=recipe.training,
            schedule=build_schedule(recipe),
            skipped=skipped,
            gradient_share_steps=recipe.gradient_share_steps,
        )
        if rank() == 0:
            tokenizer.save_pretrained(student_folder)
            student.save(student_folder)
            record(folder, recipe, pairs.fingerprint(), seconds=time.time() - started)
    TRAINING_BEGAN.set()
    if rank() != 0:
        return folder
    student = load_model(student_folder)
    for task in recipe.export:
        if not (folder / "export" / task).exists():
            with whole_folder(folder / "export" / task) as draft:
                export(student, tokenizer, draft, task=task)
    examine(folder, student, tokenizer, recipe, source.examples)
    if recipe.teacher is not None:
        examine(folder / "teacher", open_teacher(recipe.teacher), tokenizer, recipe, source.examples)
        _keep_log(folder / "teacher" / "log.jsonl", [Path(shipped(origin)) for origin in recipe.teacher.folders])
    return folder


def evaluate_saved(out: Path, saved: Path, recipe: DLIPRecipe) -> None:
    """Evaluate, profile and picture a saved model into `out`, going on where an earlier call was cut off.

    `out` keeps which model and recipe it is about. Raises RecipeError where that is another one, or unknown.
    """
    model, tokenizer = open_student(saved)
    data, vqa = recipe.data, recipe.evaluation.vqa
    ranks_training = vqa is not None and vqa.mode == "rank" and vqa.answers is None
    about = {
        "model": f"{fingerprint(model)} {number_of(tokenizer.backend_tokenizer.to_str()):x}",
        "recipe": {
            "evaluation": recipe.evaluation.model_dump(
                mode="json", exclude=dict.fromkeys(recipe.evaluation.tasks, SPEED)
            ),
            "root": data.root,
            "train": [source.model_dump(mode="json") for source in data.train] if ranks_training else None,
            "profile_batch_size": recipe.profile_batch_size,
        },
    }
    claim_evaluation(out, about)
    examine(out, model, tokenizer, recipe, open_data(recipe).examples if ranks_training else ())


def examine(
    folder: Path,
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    recipe: DLIPRecipe,
    training: Sequence[Example],
) -> None:
    """Evaluate, profile and picture a model into `folder` as a recipe says; what is there already stays.

    Where questions are answered by ranking, the answers are those of the `training` examples.
    """
    config, root = recipe.evaluation, Path(recipe.data.root)
    device = device_here()
    tasks = load_tasks(config, root)
    if tasks and not (folder / "evaluation" / "summary.json").exists():
        ranks = config.vqa is not None and config.vqa.mode == "rank" and config.vqa.answers is None
        answers = common_answers(training) if ranks else None
        given, model = examples_of(tasks), model.to(device)
        evaluate(model, tokenizer, config, given, folder=folder, device=device, answers=answers, base=root)
    if not (folder / "profile.json").exists():
        costs = profile(model.to("cpu"), batch_size=recipe.profile_batch_size)
        write_text(folder / "profile.json", json.dumps(costs.to_json(), indent=2))
    if tasks and not (folder / "gallery" / "gallery.json").exists():
        held_out = next(iter(tasks.values())).examples
        chosen = [held_out[index] for index in range(min(GALLERY_SIZE, len(held_out)))]
        _hang(
            folder / "gallery", chosen, attention_view(model.to("cpu"), tokenizer, chosen, device=torch.device("cpu"))
        )


def _keep_log(target: Path, origins: Sequence[Path]) -> None:
    """Copy the log of the run that made the teacher, where its folder holds it or lies in that run's folder."""
    for origin in origins:
        for log_file in (origin / "log.jsonl", origin.parent / "log.jsonl"):
            if log_file.is_file() and not target.exists():
                write_text(target, log_file.read_text())


def open_student(folder: Path) -> tuple[Model, PreTrainedTokenizerFast]:
    """A trained model and its tokenizer from a run folder, or from a model folder itself. Raises RecipeError."""
    found = folder / "student" if (folder / "student").is_dir() else folder
    if not (found / "tokenizer.json").is_file():
        raise RecipeError(f"{folder}: neither a run folder with a student nor a model folder with a tokenizer.json")
    return load_model(found), load_tokenizer(FolderTokenizer(tokenizer="folder", path=str(found)))


def _hang(gallery: Path, examples: Sequence[Example], views: Sequence[dict[str, Any]]) -> None:
    """Save the pictures that the page shows, with their texts and what the model looks at in them."""
    seen = {view["id"]: view for view in views}
    entries = []
    for number, example in enumerate(example for example in examples if example.id in seen):
        save_picture(example.image, gallery / f"{number}.png")
        questions = [{"text": question.text, "answers": question.answers} for question in example.questions]
        entries.append(
            seen[example.id] | {"file": f"{number}.png", "captions": example.captions, "questions": questions}
        )
    write_text(gallery / "gallery.json", json.dumps(entries))
