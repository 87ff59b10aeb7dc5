"""A method's stages from first to last, resumable at any moment by the same call."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer

from limbeck.errors import TRAINING_BEGAN
from limbeck.method import Method, Stage
from limbeck.training.checkpoint import discard_torn, latest
from limbeck.training.freeze import freeze
from limbeck.training.schedule import Schedule
from limbeck.training.skips import SkipLog
from limbeck.training.trainer import WEIGHTS, StageTrainer, load_method, save_method
from limbeck.writing import write_text

log = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    "dataloader_drop_last": True,
    "ddp_broadcast_buffers": False,
    "ddp_find_unused_parameters": True,
    "logging_nan_inf_filter": False,
    "logging_steps": 10,
    "optim": "adamw_torch_fused",
    "remove_unused_columns": False,
    "report_to": ["tensorboard"],
    "save_steps": 500,
    "save_total_limit": 2,
}
"""Where limbeck's defaults differ from TrainingArguments' own."""

PACKAGES = ("limbeck", "torch", "transformers", "accelerate", "tokenizers", "numpy", "pillow")


def training_arguments(output: Path, seed: int, *overrides: Mapping[str, Any]) -> TrainingArguments:
    """TrainingArguments from limbeck's defaults and a recipe's settings, the later ones stronger.

    TensorBoard is there whatever else `report_to` names, unless it is empty or `none`. Raises ValueError or TypeError
    as TrainingArguments does.
    """
    settings = {**DEFAULTS, "use_cpu": not torch.cuda.is_available() and not torch.backends.mps.is_available()}
    for override in overrides:
        settings.update(override)
    settings["report_to"] = _reporting(settings["report_to"])
    if "MASTER_ADDR" not in os.environ:
        settings.pop("ddp_find_unused_parameters")
        settings.pop("ddp_broadcast_buffers")
    return TrainingArguments(output_dir=str(output), seed=seed, **settings)


def _reporting(chosen: str | Sequence[str] | None) -> list[str]:
    """`report_to` as TrainingArguments takes it: nothing, everything installed, or TensorBoard and what is named."""
    names = [chosen] if isinstance(chosen, str) else list(chosen or ())
    return names if names in ([], ["none"], ["all"]) else [*dict.fromkeys(("tensorboard", *names))]


class TrainingData(NamedTuple):
    """What a stage trains on."""

    dataset: Dataset
    """map-style, by (index, epoch)"""
    collate: Callable[[Sequence[Any]], Any]
    """items to a batch"""


def run_stages(
    method: Method,
    data: Callable[[Stage], TrainingData],
    *,
    folder: Path,
    seed: int,
    training: Mapping[str, Any],
    schedule: Schedule | None = None,
    skipped: SkipLog,
    gradient_share_steps: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train `method` through all its stages, each on its own `data`, leaving log and checkpoints in `folder`.

    Called again on the same folder it goes on: a finished stage is loaded, an unfinished one resumes from its newest
    sealed checkpoint, a torn checkpoint is deleted. On the CPU the outcome is bit-identical to an uninterrupted run.
    """
    set_seed(seed)
    log_file = folder / "log.jsonl"
    for stage in method.stages():
        output = folder / "stages" / stage.name
        finished = output / "finished.json"
        if finished.exists():
            load_method(method, output / WEIGHTS)
            log.info("stage %s is finished, loaded from %s", stage.name, output)
            continue
        freeze(method, stage.trainable, (*method.teachers(), *method.followers()))
        _keep_activations(method)
        args = training_arguments(output, seed, training, stage.training)
        if args.n_gpu > 1:
            raise ValueError(
                f"one process sees {args.n_gpu} GPUs; start one for each: torchrun --nproc-per-node {args.n_gpu} "
                "-m limbeck.cli train ..., or choose one by CUDA_VISIBLE_DEVICES"
            )
        trainer = StageTrainer(
            method,
            stage,
            args,
            *data(stage),
            schedule=schedule,
            skipped=skipped,
            log_file=log_file,
            gradient_share_steps=gradient_share_steps,
            callbacks=list(callbacks),
        )
        checkpoint = _resume_point(output, log_file, stage, main=trainer.is_world_process_zero())
        steps = _steps_if_last(checkpoint)
        if checkpoint is not None and steps:
            load_method(method, checkpoint / WEIGHTS)
        else:
            TRAINING_BEGAN.set()
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            trainer.report_left_out()
            steps = trainer.state.global_step
        if trainer.is_world_process_zero():
            save_method(method, output / WEIGHTS)
            write_text(finished, json.dumps({"steps": steps}))
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()  # DeepSpeed's engine too: its hooks would reach the next stage


def _keep_activations(method: Method) -> None:
    """Gradient checkpointing off, as a stage begins; its Trainer turns on what the stage asks for."""
    for module in method.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = False


def _resume_point(output: Path, log_file: Path, stage: Stage, *, main: bool) -> Path | None:
    if main:
        for path in discard_torn(output):
            log.warning("%s was torn by a kill and is passed over", path)
    checkpoint = latest(output)
    if main and log_file.exists():
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        lines = [line for line in log_file.read_text().splitlines() if _stays(line, stage.name, step)]
        write_text(log_file, "".join(line + "\n" for line in lines))
    return checkpoint


def _steps_if_last(checkpoint: Path | None) -> int:
    """The steps of a stage whose last checkpoint this is; 0 where training has to go on."""
    if checkpoint is None:
        return 0
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state.global_step if state.global_step >= state.max_steps else 0


def _stays(line: str, stage: str, step: int) -> bool:
    """Whether a line of the log was written before `step` of `stage`; a line torn by a kill was not."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return False
    return record["stage"] != stage or record["step"] <= step


def record_environment(folder: Path, *, seed: int, data_fingerprint: str, seconds: float | None = None) -> None:
    """Write what a reader needs to repeat the run: versions, seed, data, machine, command."""
    write_text(
        folder / "environment.json",
        json.dumps(
            {
                "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
                "seed": seed,
                "data_fingerprint": data_fingerprint,
                "machine": describe_machine(),
                "command": shlex.join(["limbeck", *sys.argv[1:]]),
                "started": datetime.fromtimestamp(time.time() - (seconds or 0), UTC).isoformat(timespec="seconds"),
                "seconds": seconds,
            },
            indent=2,
        ),
    )


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads and accelerator, without a host name."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "system": platform.system(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
