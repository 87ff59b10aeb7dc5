"""A run that was killed goes on by the same command, to the same bits as one that was not."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.recipe import load_recipe
from limbeck.run import run_recipe
from limbeck.training.checkpoint import MANIFEST

STEPS, STEPS_PER_EPOCH = 11, 8
CHANGES = {
    "student": {"vision": {"drop_path": 0.1}, "text": {"dropout": 0.1}},
    "data": {"transform": {"crop": [0.5, 1.0], "flip": True}},
    "stages": [
        {"name": "align", "trainable": ["student.vision", "projections"], "training": {"max_steps": 2}},
        {"name": "pretrain"},
    ],
    "training": {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 20},
}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """The student, and all that the method keeps: maps, momentum encoders, queues."""
    student = {f"model {name}": x for name, x in load_file(run / "student" / "model.safetensors").items()}
    return student | load_file(run / "stages" / "pretrain" / "model.safetensors")


def log_lines(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("samples_per_second")
    return lines


def assert_same(run: Path, reference: Path) -> None:
    ours, theirs = tensors(run), tensors(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert log_lines(run) == log_lines(reference)


@pytest.fixture(scope="module", params=["float32", "bf16"])
def reference(request, write_recipe, tmp_path_factory) -> Path:
    """The recipe of a run that nothing interrupted; every checkpoint is kept."""
    changes = {**CHANGES, "training": {**CHANGES["training"], "bf16": request.param == "bf16"}}
    recipe = write_recipe(tmp_path_factory.mktemp("reference"), changes, teacher=True)
    run_recipe(load_recipe(str(recipe)))
    return recipe


def cut_short(reference: Path, folder: Path, step: int) -> tuple[Path, Path]:
    """What a kill soon after the checkpoint of `step` leaves: the recipe with a run folder of its own, and that one."""
    run = folder / "run"
    shutil.copytree(reference.parent / "run", run)
    for name in ("student", "profile.json", "stages/pretrain/finished.json", "stages/pretrain/model.safetensors"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (run / "stages" / "pretrain").glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    recipe = folder / "recipe.yaml"
    for old, new in ((reference, recipe), (run / "recipe.yaml", run / "recipe.yaml")):
        new.write_text(old.read_text().replace(str(reference.parent), str(folder)))
    return recipe, run


def test_the_run_trained_all_of_its_state(reference):
    run = reference.parent / "run"
    first, last = (
        load_file(run / "stages" / "pretrain" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 8)
    )
    for name in ("student.vision.norm.weight", "objective.momentum.text_head.weight", "objective.image_queue.features"):
        assert not torch.equal(first[name], last[name]), name
    assert [line["step"] for line in log_lines(run)] == [1, 2, *range(1, STEPS + 1)]


@pytest.mark.parametrize("step", [4, STEPS_PER_EPOCH, 10, STEPS], ids=["in epoch", "epoch end", "epoch 2", "last"])
def test_going_on_from_a_checkpoint_gives_the_same_bits(reference, tmp_path, step):
    recipe, run = cut_short(reference, tmp_path, step)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"stage": "pretrain", "st')
    torch.manual_seed(99)
    run_recipe(load_recipe(str(recipe)))
    assert_same(run, reference.parent / "run")


@pytest.mark.parametrize("tear", ["manifest", "weights", "optimizer"])
def test_a_torn_checkpoint_is_passed_over(reference, tmp_path, tear):
    recipe, run = cut_short(reference, tmp_path, 6)
    newest = run / "stages" / "pretrain" / "checkpoint-6"
    if tear == "manifest":
        (newest / MANIFEST).unlink()
    elif tear == "weights":
        with (newest / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
    else:
        (newest / "optimizer.pt").unlink()
    before = (run / "stages" / "pretrain" / "checkpoint-4" / "model.safetensors").stat().st_mtime_ns
    run_recipe(load_recipe(str(recipe)))
    assert_same(run, reference.parent / "run")
    assert (run / "stages" / "pretrain" / "checkpoint-4" / "model.safetensors").stat().st_mtime_ns == before


def test_a_finished_run_does_nothing_more(reference):
    run = reference.parent / "run"
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*") if path.is_file()}
    run_recipe(load_recipe(str(reference)))
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("reference", ["float32"], indirect=True)
def test_killed_at_a_random_moment_the_same_command_goes_on(reference, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(reference.read_text().replace(str(reference.parent), str(tmp_path)))
    log = tmp_path / "run" / "log.jsonl"
    command = [sys.executable, "-m", "limbeck.cli", "train", str(recipe)]
    wanted = random.randrange(3, 11)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and (not log.exists() or log.read_text().count("\n") < wanted):
            time.sleep(0.005)
        time.sleep(random.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        errors = process.stderr.read().decode() if process.stderr else ""
    assert process.returncode == -signal.SIGKILL, errors
    assert not (tmp_path / "run" / "stages" / "pretrain" / "finished.json").exists(), "killed too late to tell"
    run_recipe(load_recipe(str(recipe)))
    assert_same(tmp_path / "run", reference.parent / "run")
