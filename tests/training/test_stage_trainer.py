"""What one stage leaves behind: exact averages, the log, checkpoints of the student and its state."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import TrainerCallback

from limbeck.assemble.dlip import build_method, build_pairs, build_student, build_teacher, open_data, open_tokenizer
from limbeck.data.examples import DataError
from limbeck.models.load import load_model
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe
from limbeck.training.meter import Meter
from limbeck.training.run import TrainingData, run_stages
from limbeck.training.skips import SkipLog


class Gradients(TrainerCallback):
    """Copies every gradient before the first optimizer step."""

    def __init__(self):
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if not self.found:
            self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(path: Path, overrides: Sequence[str] = (), callbacks: Sequence[TrainerCallback] = ()) -> list[dict[str, Any]]:
    """Train a recipe's stages alone; the lines of its log."""
    recipe = load_recipe(str(path), overrides)
    torch.manual_seed(recipe.seed)
    source = open_data(recipe)
    tokenizer = open_tokenizer(recipe, source)
    teacher = build_teacher(recipe, tokenizer)
    method = build_method(recipe, build_student(recipe, tokenizer, teacher), teacher)
    pairs = build_pairs(recipe, source, tokenizer)
    folder = Path(recipe.output)
    run_stages(
        method,
        lambda stage: TrainingData(pairs, pairs.collate),
        folder=folder,
        seed=recipe.seed,
        training=recipe.training,
        skipped=SkipLog(folder / "skipped.jsonl", len(pairs), 0.0),
        gradient_share_steps=recipe.gradient_share_steps,
        callbacks=callbacks,
    )
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_accumulating_micro_batches_changes_no_gradient(write_recipe, tmp_path):
    weights = {"language": 1.0, "answer": 1.0, "hidden": 1.0, "attention": 1000.0}
    lines, found = [], []
    for name, size, steps in (("whole", 8, 1), ("halves", 4, 2), ("quarters", 2, 4)):
        changes = {
            "stages": [{"name": "pretrain", "weights": weights}],
            "training": {"max_steps": 1, "per_device_train_batch_size": size, "gradient_accumulation_steps": steps},
        }
        gradients = Gradients()
        lines.append(train(write_recipe(tmp_path / name, changes, teacher=True), callbacks=[gradients])[0])
        found.append(gradients.found)
    for line, gradients in zip(lines[1:], found[1:]):
        assert line["terms"] == pytest.approx(lines[0]["terms"], rel=1e-4)
        assert line["loss"] == pytest.approx(lines[0]["loss"], rel=1e-4)
        assert len(lines[0]["terms"]) > 12
        assert gradients.keys() == found[0].keys()
        for name, gradient in gradients.items():
            assert (gradient - found[0][name]).abs().max() <= 1e-4 * found[0][name].abs().max() + 1e-6, name


def test_an_epoch_may_end_with_fewer_micro_batches(write_recipe, tmp_path):
    """64 pairs in micro-batches of 8, 3 a step: steps of 3, 3 and 2, and every epoch in an order of its own."""
    changes = {
        "training": {"max_steps": 7, "gradient_accumulation_steps": 3, "save_strategy": "steps", "save_steps": 4}
    }
    lines = train(write_recipe(tmp_path, changes))
    assert [line["epoch"] for line in lines] == pytest.approx([3 / 8, 6 / 8, 1, 11 / 8, 14 / 8, 2, 19 / 8])
    assert [line["state"]["alpha"] for line in lines] == pytest.approx([0.4 * min(1, step / 6) for step in range(7)])


def test_the_log_has_every_term_its_weight_and_its_share(write_recipe, tmp_path):
    changes = {
        "stages": [{"name": "first", "weights": {"contrastive": 1.0, "language": 0.5, "hidden/image": 2.0}}],
        "training": {"max_steps": 6, "logging_steps": 2, "report_to": ["tensorboard"]},
        "gradient_share_steps": 4,
    }
    lines = train(write_recipe(tmp_path, changes, teacher=True))
    assert [(line["stage"], line["step"]) for line in lines] == [("first", 2), ("first", 4), ("first", 6)]
    for line in lines:
        assert line["weights"] == {"contrastive": 1.0, "language": 0.5, "hidden/image": 2.0}
        assert line["terms"].keys() == line["weights"].keys()
        assert line["loss"] == pytest.approx(
            sum(line["weights"][name] * x for name, x in line["terms"].items()), rel=1e-4
        )
        assert {"temperature", "alpha"} <= line["state"].keys()
        assert line["samples_per_second"] > 0
        assert line["learning_rate"] > 0
    assert [("gradient_share" in line) for line in lines] == [True, False, True]
    assert sum(lines[0]["gradient_share"].values()) == pytest.approx(1)
    assert lines[0]["gradient_share"].keys() == lines[0]["weights"].keys()
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_what_is_measured_now_and_then_reaches_the_log(write_recipe, tmp_path):
    changes = {
        "dlip": {"hidden": {"hr_map": "paper", "sites": ["img"]}},
        "training": {"max_steps": 4, "logging_steps": 2},
    }
    lines = train(write_recipe(tmp_path, changes, teacher=True))
    assert ["effective_rank/image" in line["state"] for line in lines] == [True, False]


def test_checkpoints_hold_the_student_and_its_state_and_no_teacher(write_recipe, tmp_path):
    path = write_recipe(tmp_path, {"training": {"save_strategy": "steps", "save_steps": 2}}, teacher=True)
    run = run_recipe(load_recipe(str(path)))
    files = [*run.glob("stages/*/checkpoint-*/model.safetensors"), run / "stages" / "pretrain" / "model.safetensors"]
    assert len(files) == 3
    for file in files:
        with safe_open(file, "pt") as content:
            names = set(content.keys())
        assert not [name for name in names if name.startswith("teacher")]
        assert {"objective.image_queue.features", "objective.text_queue.position", "objective.queue_ids"} <= names
        assert {name.split(".")[0] for name in names} == {"student", "objective", "projections"}
        assert [name for name in names if name.startswith("objective.momentum.vision")]
    student = load_model(run / "student")
    assert student.config.vision.width == 32
    with safe_open(files[-1], "pt") as content:
        for name, parameter in student.named_parameters():
            assert torch.equal(content.get_tensor(f"student.{name}"), parameter), name


def test_a_stage_trains_what_it_names_and_starts_from_the_one_before(write_recipe, tmp_path):
    stages = [
        {"name": "vision", "trainable": ["student.vision"], "weights": {"contrastive": 1.0}},
        {"name": "all", "training": {"max_steps": 1, "learning_rate": 0.0}},
    ]
    run = run_recipe(load_recipe(str(write_recipe(tmp_path, {"stages": stages}))))
    with safe_open(run / "stages" / "vision" / "model.safetensors", "pt") as first:
        started = load_model(run / "student")
        for name, parameter in started.named_parameters():
            assert torch.equal(first.get_tensor(f"student.{name}"), parameter), name
    untrained = run_recipe(
        load_recipe(str(write_recipe(tmp_path / "still", {"training": {"max_steps": 1, "learning_rate": 0.0}})))
    )
    before = dict(load_model(untrained / "student").named_parameters())
    changed = {
        name.split(".")[0] for name, parameter in started.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed == {"vision"}


def test_too_few_examples_for_one_batch_are_an_error_before_training(write_recipe, tmp_path):
    path = write_recipe(tmp_path, {"training": {"per_device_train_batch_size": 65}})
    with pytest.raises(DataError, match=r"64 training examples do not fill one batch of 65.*dataloader_drop_last"):
        train(path)
    assert train(path, ["training.dataloader_drop_last=false", "training.max_steps=1"])[0]["epoch"] == 1


def test_the_schedule_is_the_recipes(write_recipe, tmp_path):
    schedule = {"kind": "epoch_exponential", "rate": 0.5, "warmup_steps": 2, "warmup_from": 0.0, "minimum": 3e-4}
    path = write_recipe(tmp_path, {"schedule": schedule, "training": {"max_steps": 19}})
    run_recipe(load_recipe(str(path)))
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0, 5e-4] + [1e-3] * 6 + [5e-4] * 8 + [3e-4] * 3)


def test_a_meter_starts_anew_after_each_line():
    meter = Meter(since=10)
    meter.terms = {"language": torch.tensor(6.0)}
    assert meter.drain(12, world_size=1) == {"terms": {"language": 3.0}, "state": {}}
    assert meter.drain(14, world_size=1) == {"terms": {}, "state": {}}
