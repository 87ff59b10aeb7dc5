"""A CTVLM run by two processes, as torchrun starts them: what one process computes, and it goes on after a kill."""

import gc
import json
import multiprocessing
import os
import signal
import socket
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_ctvlm_recipe import SCENES, stage, write_ctvlm_recipe, write_eye

from limbeck.methods.ctvlm import CTVLM
from limbeck.models.duet import Duet
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe

SHORT = {"source": "instructions", "of": SCENES}
STAGES = [
    stage("language"),
    stage("align_large"),
    stage("tune"),
    stage("align_tiny"),
    stage("tune", name="tune_sampled", data=[SHORT], on_policy=True),
]
SAME = ("language", "align_large", "tune")
"""The stages in which nothing is drawn; the others draw in each process for itself."""
DYING = ("tune_sampled", 1)
"""Stage and step, counted from 0, before which both processes are killed."""


def work(recipe: str, environment: dict[str, str], dies: bool) -> None:
    """What a process does."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    gc.freeze()
    if dies:
        begin_step = CTVLM.begin_step

        def stepping(method: CTVLM, step: int) -> None:
            if (method.stage.name, step) == DYING:
                os.kill(os.getpid(), signal.SIGKILL)
            begin_step(method, step)

        CTVLM.begin_step = stepping
    try:
        run_recipe(load_recipe(recipe))
    except BaseException:
        Path(recipe).with_name(f"error {environment.get('RANK')}.txt").write_text(traceback.format_exc())
        raise


def start(recipe: Path, processes: int, *, dies: bool = False) -> list[int | None]:
    """Run a recipe by so many processes; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["limbeck.run", "torch._dynamo"])
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    environments = [
        {**address, "WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(processes)
    ]
    started = [
        context.Process(target=work, args=(str(recipe), environment if processes > 1 else {}, dies))
        for environment in environments
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def errors(recipe: Path) -> str:
    return "\n".join(path.read_text() for path in recipe.parent.glob("error *.txt"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """By one process with batches of 8, by two with 4 each, and by two that were killed and started again."""
    folder = tmp_path_factory.mktemp("processes")
    eye = write_eye(folder / "eye")
    recipes = {}
    for name, size in (("one", 8), ("two", 4), ("killed", 4)):
        training = {"per_device_train_batch_size": size, "max_steps": 2, "optim": "sgd", "learning_rate": 0.05}
        training["lr_scheduler_type"] = "constant"
        recipes[name] = write_ctvlm_recipe(folder / name, eye, STAGES, training=training, evaluation={"models": []})
    assert start(recipes["one"], 1) == [0], errors(recipes["one"])
    assert start(recipes["two"], 2) == [0, 0], errors(recipes["two"])
    assert start(recipes["killed"], 2, dies=True) == [-signal.SIGKILL] * 2, errors(recipes["killed"])
    assert start(recipes["killed"], 2) == [0, 0], errors(recipes["killed"])
    return {name: recipe.with_name("run") for name, recipe in recipes.items()}


def log_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_terms_and_gradients_are_those_of_one_process(runs):
    one, two = ({(line["stage"], line["step"]): line for line in log_lines(runs[name])} for name in ("one", "two"))
    assert list(one) == list(two) == [(each["name"], step) for each in STAGES for step in (1, 2)]
    for key in one:
        if key[0] in SAME:
            assert two[key]["terms"] == pytest.approx(one[key]["terms"], rel=1e-4, abs=1e-6), key
            assert two[key]["grad_norm"] == pytest.approx(one[key]["grad_norm"], rel=1e-3), key


@pytest.mark.parametrize("name", SAME)
def test_the_weights_are_those_of_one_process(runs, name):
    one, two = (load_file(runs[each] / "stages" / name / "model.safetensors") for each in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=1e-5), key


def test_one_run_folder_each_file_written_once(runs):
    run = runs["two"]
    for path in run.glob("stages/*/checkpoint-*"):
        sealed = json.loads((path / "complete.json").read_text())["files"]
        assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"} <= sealed.keys()
    assert isinstance(Duet.from_pretrained(run / "student"), Duet)
    assert not list(run.rglob(".*")), "no draft is left"


def test_two_killed_processes_go_on_to_the_same_bits(runs):
    two, killed = (log_lines(runs[name]) for name in ("two", "killed"))
    for line in (*two, *killed):
        line.pop("samples_per_second")
    assert killed == two
    for model in ("student", "tiny/student"):
        ours, theirs = (load_file(runs[name] / model / "model.safetensors") for name in ("killed", "two"))
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
