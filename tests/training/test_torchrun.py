"""`torchrun -m limbeck.cli train`: two processes, one run folder, and what one process computes at the same batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from limbeck.data.order import EpochSampler
from limbeck.models.load import load_model
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe

SEED, PICTURES = 3, 24


def changes(folder: Path, size: int) -> dict:
    return {
        "data": {
            "train": [{"source": "jsonl", "path": str(folder / "train.jsonl")}],
            "max_skipped": 0.05,
        },
        "stages": [
            {
                "name": "pretrain",
                "weights": {"contrastive": 1.0, "language": 1.0, "answer": 1.0, "hidden": 1.0, "attention": 10.0},
            }
        ],
        "training": {
            "per_device_train_batch_size": size,
            "optim": "sgd",
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "save_strategy": "steps",
            "save_steps": 2,
        },
        "gradient_share_steps": 2,
    }


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def runs(write_recipe, tmp_path_factory) -> tuple[Path, Path]:
    """The same recipe by one process with batches of 8, and by two with 4 each.

    The picture that comes last is broken: it is met by the second process, after the steps that are compared.
    """
    folder = tmp_path_factory.mktemp("torchrun")
    broken = list(EpochSampler(PICTURES, seed=SEED))[-1][0]
    lines = []
    for number in range(PICTURES):
        Image.effect_noise((32, 32), 10 + 4 * number).convert("RGB").save(folder / f"{number}.png")
        question = {"question": "which number is it?", "answers": [str(number), "a number"]}
        lines.append({"image": f"{number}.png", "caption": f"the picture number {number}", "questions": [question]})
    (folder / f"{broken}.png").write_text("no picture")
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one = run_recipe(load_recipe(str(write_recipe(folder / "one", changes(folder, 8), teacher=True))))
    two = write_recipe(folder / "two", changes(folder, 4), teacher=True)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launch += ["--master-port", str(free_port()), "-m", "limbeck.cli", "train", str(two)]
    result = subprocess.run(
        [sys.executable, *launch], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return one, folder / "two" / "run"


def log_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_terms_and_gradients_are_those_of_one_process(runs):
    one, two = (log_lines(run) for run in runs)
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3]
    for step in (0, 1):
        assert one[step]["terms"].keys() == two[step]["terms"].keys()
        for name, value in one[step]["terms"].items():
            assert two[step]["terms"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        assert two[step]["grad_norm"] == pytest.approx(one[step]["grad_norm"], rel=1e-3)
        assert two[step]["state"] == pytest.approx(one[step]["state"])


def test_weights_queue_and_momentum_encoders_follow(runs):
    one, two = (load_file(run / "stages" / "pretrain" / "checkpoint-2" / "model.safetensors") for run in runs)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), atol=1e-5), name


def test_one_run_folder_each_file_written_once(runs):
    _, run = runs
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == 1, "the second process's broken picture"
    checkpoints = sorted(path.name for path in (run / "stages" / "pretrain").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-2", "checkpoint-3"]
    for path in (run / "stages" / "pretrain").glob("checkpoint-*"):
        sealed = json.loads((path / "complete.json").read_text())["files"]
        assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"} <= sealed.keys()
    assert load_model(run / "student").config.family == "blip"
    assert json.loads((run / "environment.json").read_text())["seconds"] > 0
    assert not list(run.rglob(".*")), "no draft is left"
