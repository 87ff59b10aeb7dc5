"""A competition that is killed in each of its phases goes on by the same command, to the bits of one that was not."""

import gc
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_comd_recipe import CHAT, TRAINING, competition_recipe, teacher_recipe
from tiny_ctvlm_recipe import write_eye

from limbeck.competition.pool import Pool
from limbeck.competition.pool_records import Answer, Result
from limbeck.methods.comd import CoMD
from limbeck.recipe import find_recipe, load_recipe
from limbeck.run import run_recipe

IMPORTS = ["limbeck.run", "torch._dynamo", "transformers.models.llava.modeling_llava"]
IMPORTS += [f"transformers.models.{name}.modeling_{name}" for name in ("clip", "llama")]
KILLS = [
    ("teacher answers", 5),
    ("tune-1", 2),
    ("student answers", 6),
    ("Assessment", 9),
    ("Augmentation", 1),
    ("closing", 1),
    ("tune-2", 1),
]
"""A phase, and its result or step at which the process is killed."""
LAPTOP_KILLS = [
    ("pretrain", 300),
    ("teacher answers", 500),
    ("tune-1", 60),
    ("student answers", 400),
    ("Assessment", 900),
    ("Augmentation", 200),
    ("closing", 1),
    ("tune-2", 120),
]
PROCESSES = 2
TUNING = {"tuning": {"chat": CHAT, "schedule": "whole", "training": {"max_steps": 4}}}
"""A tuning whose learning rate goes on from that of the one before"""


def kind_of(result: Result) -> str:
    return f"{result.role} answers" if isinstance(result, Answer) else type(result).__name__


def kill_at(phase: str, number: int) -> None:
    """Let this process die when that phase has come so far."""
    add, begin_step, close_round = Pool.add, CoMD.begin_step, Pool.close_round
    seen = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def adding(pool: Pool, result: Result) -> bool:
        nonlocal seen
        added = add(pool, result)
        seen += kind_of(result) == phase
        if seen == number:
            die()
        return added

    def stepping(method: CoMD, step: int) -> None:
        if (method.stage.name, step) == (phase, number):
            die()
        begin_step(method, step)

    def closing(pool: Pool, round):
        if phase == "closing":
            die()
        return close_round(pool, round)

    Pool.add, CoMD.begin_step, Pool.close_round = adding, stepping, closing


def work(recipe: str, environment: dict[str, str], kill: tuple[str, int] | None) -> None:
    """What a process does."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    gc.freeze()
    if kill is not None:
        kill_at(*kill)
    try:
        run_recipe(load_recipe(recipe))
    except BaseException:
        Path(recipe).with_name("error.txt").write_text(traceback.format_exc())
        raise


def start(recipe: Path, kill: tuple[str, int] | None = None, processes: int = 1) -> list[int | None]:
    """Run a recipe in processes of their own; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    started = []
    for rank in range(processes):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(context.Process(target=work, args=(str(recipe), own, kill)))
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def said(recipe: Path) -> str:
    error = recipe.with_name("error.txt")
    return error.read_text() if error.exists() else ""


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[Path, Path]:
    """An eye, and a teacher that writes scores and questions."""
    folder = tmp_path_factory.mktemp("teacher")
    eye = write_eye(folder / "eye")
    recipe = teacher_recipe(folder, eye)
    assert start(recipe) == [0], said(recipe)
    return eye, folder / "run" / "student"


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory) -> Path:
    """An uninterrupted competition."""
    recipe = competition_recipe(tmp_path_factory.mktemp("whole"), *parts, competition=TUNING)
    assert start(recipe) == [0], said(recipe)
    return recipe.with_name("run")


def digest(run: Path) -> str:
    with Pool.open(run / "pool.sqlite", readonly=True) as pool:
        return pool.digest()


def calls(run: Path) -> dict[str, int]:
    """How many calls the pool has, by kind."""
    with sqlite3.connect(run / "pool.sqlite") as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("answers", "assessments", "augmentations", "instructions")
        }


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def test_killed_in_every_phase_it_ends_with_the_same_pool_and_student(parts, whole, tmp_path):
    recipe = competition_recipe(tmp_path, *parts, competition=TUNING)
    for kill in KILLS:
        assert start(recipe, kill) == [-signal.SIGKILL], f"{kill}: {said(recipe)}"
    assert start(recipe) == [0], said(recipe)
    run = recipe.with_name("run")
    assert calls(run) == calls(whole)
    assert digest(run) == digest(whole)
    ours, theirs = weights(run), weights(whole)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    for number in ("1", "2"):
        data = Path("rounds") / number / "data.jsonl"
        assert (run / data).read_text() == (whole / data).read_text()


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_the_laptop_competition_survives_a_kill_in_every_phase(tmp_path):
    """The shipped recipe at its own size, beside an uninterrupted one; 8 to 9 minutes on two cores."""
    recipes = {name: tmp_path / name / "recipe.yaml" for name in ("whole", "killed")}
    for path in recipes.values():
        path.parent.mkdir()
        path.write_text(yaml.safe_dump({"base": str(find_recipe("comd/laptop")), "output": str(path.with_name("run"))}))
    killed = recipes["killed"]
    with ThreadPoolExecutor(1) as other:
        whole = other.submit(start, recipes["whole"])
        for kill in LAPTOP_KILLS:
            assert start(killed, kill) == [-signal.SIGKILL], f"{kill}: {said(killed)}"
        assert start(killed) == [0], said(killed)
        assert whole.result() == [0], said(recipes["whole"])
    ours, theirs = (path.with_name("run") for path in (killed, recipes["whole"]))
    assert calls(ours) == calls(theirs)
    assert digest(ours) == digest(theirs)
    ended = weights(theirs)
    assert [name for name, weight in weights(ours).items() if not torch.equal(weight, ended[name])] == []


def test_called_again_it_asks_and_trains_nothing(whole):
    before = digest(whole), weights(whole), (whole / "log.jsonl").read_text()
    assert start(whole.with_name("recipe.yaml")) == [0], said(whole.with_name("recipe.yaml"))
    assert digest(whole) == before[0]
    assert (whole / "log.jsonl").read_text() == before[2]


def test_two_processes_share_one_competition(parts, whole, tmp_path):
    """The first holds it, both train on what comes of it."""
    recipe = competition_recipe(tmp_path, *parts, training={**TRAINING, "per_device_train_batch_size": 2})
    assert start(recipe, processes=PROCESSES) == [0] * PROCESSES, said(recipe)
    run = recipe.with_name("run")
    first = Path("rounds") / "1" / "data.jsonl"
    assert (run / first).read_text() == (whole / first).read_text()
    assert {json.loads(line)["stage"] for line in (run / "log.jsonl").read_text().splitlines()} == {"tune-1", "tune-2"}
    found = calls(run)
    with Pool.open(run / "pool.sqlite", readonly=True) as pool:
        seeds = len(pool.instructions(round=0))
    assert found["instructions"] > seeds
    assert found["answers"] == found["instructions"] + seeds, "the teacher's to all, the student's to the first pool"
    assert found["assessments"] >= 2 * seeds
