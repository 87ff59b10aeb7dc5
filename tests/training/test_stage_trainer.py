"""What one stage leaves behind: exact averages, the log, checkpoints of the student and its state."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from limbeck.assemble.dlip import build_method, build_pairs, build_student, build_teacher, open_data, open_tokenizer
from limbeck.data.examples import DataError
from limbeck.models.load import load_model
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe
from limbeck.training.meter import Meter
from limbeck.training.run import TrainingData, run_stages, training_arguments
from limbeck.training.skips import SkipLog
from limbeck.training.trainer import StageTrainer


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


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["clearml"], ["tensorboard", "clearml"]),
        ("clearml", ["tensorboard", "clearml"]),
        (["clearml", "tensorboard"], ["tensorboard", "clearml"]),
        ([], []),
        ("none", []),
        (None, []),
    ],
)
def test_tensorboard_stays_beside_what_a_recipe_reports_to(tmp_path, chosen, expected):
    assert training_arguments(tmp_path, 0, {"report_to": chosen}).report_to == expected
    assert "tensorboard" in training_arguments(tmp_path, 0, {"report_to": "all"}).report_to


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


def test_accumulating_micro_batches_hides_the_same_words(write_recipe, tmp_path):
    lines, found = [], []
    for name, size, steps in (("whole", 8, 1), ("halves", 4, 2), ("quarters", 2, 4)):
        changes = {
            "student": {"family": "albef", "text": {"fusion_layers": 1}},
            "dlip": {"vlp": {"mask_token_id": 4}},
            "stages": [{"name": "pretrain", "weights": {"masked_language": 1.0}}],
            "training": {"max_steps": 2, "per_device_train_batch_size": size, "gradient_accumulation_steps": steps},
        }
        gradients = Gradients()
        lines.append(train(write_recipe(tmp_path / name, changes), callbacks=[gradients]))
        found.append(gradients.found)
    for split, gradients in zip(lines[1:], found[1:]):
        for line, whole in zip(split, lines[0]):
            assert line["terms"] == pytest.approx(whole["terms"], rel=1e-4)
        for name, gradient in gradients.items():
            assert (gradient - found[0][name]).abs().max() <= 1e-4 * found[0][name].abs().max() + 1e-6, name


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_checkpointed_layers_train_to_the_same_weights(write_recipe, tmp_path):
    """Dropout, several backward passes for the shares of the gradient, and accumulation included."""
    lines, weights = [], []
    for checkpointing in (False, True):
        changes = {
            "student": {"text": {"dropout": 0.1}},
            "training": {"gradient_checkpointing": checkpointing, "gradient_accumulation_steps": 2},
            "gradient_share_steps": 2,
        }
        folder = tmp_path / str(checkpointing)
        lines.append(train(write_recipe(folder, changes, teacher=True)))
        weights.append(load_file(folder / "run" / "stages" / "pretrain" / "model.safetensors"))
    for plain, line in zip(*lines):
        assert line["terms"] == pytest.approx(plain["terms"], rel=1e-5)
        if "gradient_share" in plain:
            assert line["gradient_share"] == pytest.approx(plain["gradient_share"], rel=1e-4)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_checkpointing_is_on_in_the_stages_that_ask_for_it_alone(write_recipe, tmp_path):
    class Layers(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            layers = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
            found.append(any(layer.gradient_checkpointing for layer in layers))

    found: list[bool] = []
    stages = [
        {"name": name, "weights": {"contrastive": 1.0}, "training": {"gradient_checkpointing": asked, "max_steps": 1}}
        for name, asked in (("first", True), ("second", False), ("third", True))
    ]
    train(write_recipe(tmp_path, {"stages": stages}), callbacks=[Layers()])
    assert found == [True, False, True]


@pytest.mark.parametrize(
    ("side", "words", "flash"), [(120, 20, False), (128, 20, True), (32, 300, True), (0, 20, False)]
)
def test_bfloat16_on_a_cpu_forms_attention_maps_over_few_tokens_alone(side, words, flash):
    """Patches of 8 pixels: 225 tokens at 120 pixels, 256 at 128; of no picture where the side is 0."""
    args = SimpleNamespace(device=torch.device("cpu"), bf16=True)
    trainer: Any = SimpleNamespace(args=args, method=torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8)))
    batch = {"input_ids": torch.zeros(2, words)} | ({"pixel_values": torch.zeros(2, 3, side, side)} if side else {})
    with StageTrainer._attention(trainer, batch):
        assert torch.backends.cuda.flash_sdp_enabled() == flash
        assert torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() != flash
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    args.bf16 = False
    with StageTrainer._attention(trainer, batch):
        assert torch.backends.cuda.flash_sdp_enabled()


def test_weight_decay_leaves_norms_biases_and_temperatures_alone(write_recipe, tmp_path):
    decayed: dict[str, bool] = {}

    class Decay(TrainerCallback):
        def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
            names = {id(weight): name for name, weight in model.named_parameters()}
            for group in optimizer.param_groups:
                decayed.update({names[id(weight)]: group["weight_decay"] > 0 for weight in group["params"]})

    train(write_recipe(tmp_path), [f"output={tmp_path / 'run'}", "training.weight_decay=0.05"], [Decay()])
    assert not decayed["student.temperature"]
    assert decayed["student.image_head.weight"]
    assert not any(decays for name, decays in decayed.items() if name.endswith(".bias") or "norm" in name)


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


def test_a_stages_own_learning_rate_is_the_peak_of_its_schedule(write_recipe, tmp_path):
    schedule = {"kind": "epoch_exponential", "rate": 0.5, "warmup_steps": 2, "warmup_from": 1e-4, "minimum": 3e-4}
    stages = [{"name": "a", "training": {"max_steps": 3}}, {"name": "b", "training": {"learning_rate": 2e-4}}]
    run = run_recipe(load_recipe(str(write_recipe(tmp_path, {"schedule": schedule, "stages": stages}))))
    rates = [json.loads(line)["learning_rate"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-4, 5.5e-4, 1e-3, 1e-4, 1.5e-4, 3e-4])


def test_a_meter_starts_anew_after_each_line():
    meter = Meter(since=10)
    meter.terms = {"language": torch.tensor(6.0)}
    assert meter.drain(12, world_size=1) == {"terms": {"language": 3.0}, "state": {}}
    assert meter.drain(14, world_size=1) == {"terms": {}, "state": {}}
