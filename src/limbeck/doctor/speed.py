"""How fast training will be: a few real steps of every stage, by the trainer itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from limbeck.doctor.batches import TrainingSet
from limbeck.doctor.finding import Finding
from limbeck.method import Method, Stage
from limbeck.recipe.shared import RecipeError, RunSettings, StageSettings
from limbeck.training.freeze import freeze
from limbeck.training.run import training_arguments
from limbeck.training.skips import SkipLog
from limbeck.training.trainer import StageTrainer

STEPS = 3
"""Steps that are timed, after one that is not."""
TRIAL = {
    "max_steps": 1 + STEPS,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}
"""What a trial changes of a stage's TrainingArguments."""


def check_speed(
    method: Method,
    recipe: RunSettings,
    arguments: Mapping[str, TrainingArguments],
    datasets: Mapping[str, TrainingSet],
    items: Mapping[str, int],
    device: str,
    processes: int = 1,
) -> Finding:
    """Rows a second of each stage in one process, and the hours that the recipe's steps will take so many at that.

    `items` are the whole training sets' lengths; `datasets` may be samples of them. The method is trained by this.
    """
    lines, figures, total = [], dict[str, Any](), 0.0
    for stage in method.stages():
        rate = _rows_per_second(method, stage, recipe, datasets[stage.name])
        own = arguments[stage.name]
        steps = planned_steps(own, items[stage.name], processes)
        rows = own.train_batch_size * own.gradient_accumulation_steps
        hours = steps * rows / rate / 3600
        total += hours
        figures[stage.name] = {"rows_per_second": rate, "steps": steps, "rows_per_step": rows, "hours": hours}
        many = f" by each of {processes} processes" * (processes > 1)
        lines.append(f"{stage.name}: {rate:,.4g} rows a second, {time_of(hours)} for {steps:,} steps of {rows}{many}")
    if len(lines) > 1:
        lines.append(f"all stages: {time_of(total)}")
    return Finding("speed", "ok", "\n".join([*lines, f"from {STEPS} steps each, on {device}"]), figures)


def stage_arguments(recipe: RunSettings, stages: Sequence[StageSettings]) -> dict[str, TrainingArguments]:
    """Every stage's TrainingArguments by its name; it also joins the processes that torchrun started.

    Raises RecipeError.
    """
    made = {}
    for index, stage in enumerate(stages):
        where = f"training, stages.{index}.training" if stage.training else "training"
        try:
            made[stage.name] = training_arguments(Path(recipe.output), recipe.seed, recipe.training, stage.training)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{where}: {error}") from None
        except ImportError as error:
            raise RecipeError(
                f"{where}: {str(error).strip()} If that is deepspeed, training.deepspeed=null behind the recipe's name "
                "does without"
            ) from None
    return made


def planned_steps(arguments: TrainingArguments, items: int, processes: int = 1) -> int:
    """Optimizer steps of a stage over a training set of so many items that processes share."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    rows = arguments.train_batch_size * processes
    micro_batches = items // rows if arguments.dataloader_drop_last else -(-items // rows)
    return round(arguments.num_train_epochs * -(-micro_batches // arguments.gradient_accumulation_steps))


def time_of(hours: float) -> str:
    """0.5 -> 30 minutes"""
    for size, unit in ((1.0, "hours"), (1 / 60, "minutes")):
        if hours >= size:
            return f"{hours / size:.1f} {unit}"
    return f"{hours * 3600:.0f} seconds"


def _rows_per_second(method: Method, stage: Stage, recipe: RunSettings, dataset: TrainingSet) -> float:
    """Of the steps after the first."""
    freeze(method, stage.trainable, (*method.teachers(), *method.followers()))
    with TemporaryDirectory() as name:
        folder = Path(name)
        log_file = folder / "log.jsonl"
        trainer = StageTrainer(
            method,
            stage,
            training_arguments(folder, recipe.seed, recipe.training, stage.training, TRIAL),
            cast(Dataset, dataset),
            dataset.collate,
            schedule=None,
            skipped=SkipLog(folder / "skipped.jsonl", len(dataset), 1.0),
            log_file=log_file,
            gradient_share_steps=0,
            callbacks=[],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
        rates = [json.loads(line)["samples_per_second"] for line in log_file.read_text().splitlines()]
    return STEPS / sum(1 / rate for rate in rates[1:])
