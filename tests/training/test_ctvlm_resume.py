"""A CTVLM run that is killed in each of its stages goes on by the same command, to the bits of one that was not."""

import gc
import json
import multiprocessing
import os
import signal
import traceback
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tiny_ctvlm_recipe import SCENES, stage, write_ctvlm_recipe, write_eye

from limbeck.methods.ctvlm import CTVLM
from limbeck.models.duet import Duet
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe
from limbeck.training import run as stages_of
from limbeck.training import trainer
from limbeck.training.checkpoint import is_sealed, latest, list_checkpoints

SHORT = {"source": "instructions", "of": SCENES}
STAGES = [
    stage("language"),
    stage("align_tiny"),
    stage("align_large"),
    stage("align_large", name="align_large_sampled", data=[SHORT], chat={"template": "vicuna_v1"}, on_policy=True),
    stage("tune", training={"train_sampling_strategy": "group_by_length"}),
    stage("tune", name="tune_sampled", data=[SHORT], on_policy=True),
]
NAMES = [each["name"] for each in STAGES]
TINY = {"duet.tiny.connector", "duet.tiny.project_in", "duet.tiny.project_out", "duet.tiny.body", "duet.tiny.cross"}
MODULES = (*TINY, "duet.connector", "duet.large", "heads")
TRAINED = {
    "align_tiny": TINY | {"heads"},
    "align_large": {"duet.connector"},
    "align_large_sampled": {"duet.connector"},
    "tune": TINY | {"duet.connector", "duet.large"},
    "tune_sampled": TINY | {"duet.connector", "duet.large"},
}


IMPORTS = ["limbeck.run", "torch._dynamo"]
IMPORTS += [f"transformers.models.{name}.modeling_{name}" for name in ("clip", "llama", "opt")]
"""What takes a process longest to start; all of them share it."""


class Kill(NamedTuple):
    """A moment of a run, and the checkpoint of its stage that the next call goes on from."""

    stage: str
    moment: str
    step: int
    checkpoint: int | None
    tear: str | None = None
    """a file of the newest checkpoint that the kill leaves torn besides"""


KILLS = [
    Kill("language", "step", 0, None),
    Kill("language", "step", 2, 2),
    Kill("language", "finish", 3, 3),
    Kill("align_tiny", "seal", 2, 1),
    Kill("align_tiny", "step", 2, 2),
    Kill("align_large", "step", 1, 1),
    Kill("align_large_sampled", "step", 2, 2),
    Kill("tune", "step", 2, 1, tear="optimizer.pt"),
    Kill("tune_sampled", "step", 1, 1),
    Kill("tune_sampled", "seal", 3, 2),
    Kill("tune_sampled", "save", 3, 3),
]
"""One run that dies eleven times. Steps count from 0, checkpoints by the steps that they hold."""


def work(recipe: str, kill: Kill | None) -> None:
    """What a process does: run the recipe, and kill itself where it is told to."""
    torch.set_num_threads(1)
    gc.freeze()  # what was imported need not be looked through each time that a stage ends
    if kill is not None:
        set_trap(kill)
    try:
        run_recipe(load_recipe(recipe))
    except BaseException:
        Path(recipe).with_name("error.txt").write_text(traceback.format_exc())
        raise


def set_trap(kill: Kill) -> None:
    """Kill this process before the step, before the checkpoint's manifest, before the stage counts as finished, or
    while the large model is saved."""
    begin_step, seal, write_text = CTVLM.begin_step, trainer.seal, stages_of.write_text

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stepping(method: CTVLM, step: int) -> None:
        if (method.stage.name, step) == (kill.stage, kill.step):
            die()
        begin_step(method, step)

    def sealing(checkpoint: Path) -> None:
        if (checkpoint.parent.name, checkpoint.name) == (kill.stage, f"checkpoint-{kill.step}"):
            die()
        seal(checkpoint)

    def finishing(path: Path, text: str) -> None:
        if (path.parent.name, path.name) == (kill.stage, "finished.json"):
            die()
        write_text(path, text)

    def saving(duet: Duet, folder: Path) -> None:
        duet.config.save_pretrained(folder)
        die()

    match kill.moment:
        case "step":
            CTVLM.begin_step = stepping
        case "seal":
            trainer.seal = sealing
        case "finish":
            stages_of.write_text = finishing
        case "save":
            Duet.save_pretrained = saving


class Runs(NamedTuple):
    reference: Path
    killed: Path


@pytest.fixture(scope="module", params=["float32", "bf16"])
def runs(request, tmp_path_factory) -> Runs:
    """Two runs of one recipe, the second one killed again and again; each process starts from the same imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    folder = tmp_path_factory.mktemp("ctvlm")
    eye = write_eye(folder / "eye")
    training = {"bf16": request.param == "bf16", "save_total_limit": 3}
    recipes = [
        write_ctvlm_recipe(folder / name, eye, STAGES, training=training, evaluation={"models": []})
        for name in ("reference", "killed")
    ]

    def start(recipe: Path, kill: Kill | None = None) -> int | None:
        process = context.Process(target=work, args=(str(recipe), kill))
        process.start()
        process.join()
        return process.exitcode

    def error(recipe: Path) -> str:
        path = recipe.with_name("error.txt")
        return path.read_text() if path.exists() else "killed"

    assert start(recipes[0]) == 0, error(recipes[0])
    run = recipes[1].with_name("run")
    for kill in KILLS:
        assert start(recipes[1], kill) == -signal.SIGKILL, f"{kill}: {error(recipes[1])}"
        folder = run / "stages" / kill.stage
        assert (folder / "finished.json").exists() == (kill.moment == "save"), kill
        if kill.tear is not None:
            with (list_checkpoints(folder)[-1] / kill.tear).open("r+b") as file:
                file.truncate(100)
        found = latest(folder)
        assert (None if found is None else found.name) == (kill.checkpoint and f"checkpoint-{kill.checkpoint}"), kill
    assert start(recipes[1]) == 0, error(recipes[1])
    return Runs(recipes[0].with_name("run"), run)


def weights_of(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "stages" / name / "model.safetensors")


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_ends_with_the_same_bits(runs, name):
    assert differing(weights_of(runs.killed, name), weights_of(runs.reference, name)) == []


@pytest.mark.parametrize("model", ["student", "tiny/student"])
def test_both_models_have_the_same_bits(runs, model):
    killed, reference = (load_file(run / model / "model.safetensors") for run in (runs.killed, runs.reference))
    assert differing(killed, reference) == []


def test_the_log_has_every_step_once_and_the_same_figures(runs):
    killed, reference = (
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (runs.killed, runs.reference)
    )
    assert [(line["stage"], line["step"]) for line in killed] == [(name, step) for name in NAMES for step in (1, 2, 3)]
    for line in (*killed, *reference):
        line.pop("samples_per_second")
    assert killed == reference


def test_everything_is_whole_in_the_end(runs):
    for run in (runs.killed, runs.reference):
        assert not list(run.rglob(".*")), "no draft is left"
        for name in NAMES:
            found = list_checkpoints(run / "stages" / name)
            assert [path.name for path in found] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
            assert all(is_sealed(path) for path in found)


@pytest.mark.parametrize(("before", "after"), list(pairwise(NAMES)), ids=NAMES[1:])
def test_a_stage_starts_from_the_one_before_and_changes_what_it_trains(runs, before, after):
    old, new = weights_of(runs.killed, before), weights_of(runs.killed, after)
    moved = [name for name in new if name not in old or not torch.equal(old[name], new[name])]
    changed = {next(module for module in MODULES if name.startswith(f"{module}.")) for name in moved}
    assert changed == TRAINED[after]
