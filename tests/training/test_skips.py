"""What cannot be read is left out, counted and listed; past the limit the run stops."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from limbeck.data.examples import DataError, Skipped
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe
from limbeck.training.skips import SkipLog


@pytest.fixture
def pictures(tmp_path):
    """24 pictures with captions, one of them cut short."""
    lines = []
    for number in range(24):
        name = f"{number}.png"
        Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / name)
        lines.append({"image": name, "captions": [f"picture number {number}", "noise"]})
    whole = (tmp_path / "7.png").read_bytes()
    (tmp_path / "7.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def changes(pictures, limit):
    return {
        "data": {
            "train": [{"source": "jsonl", "path": str(pictures / "train.jsonl")}],
            "pairs": {"questions": 0},
            "max_skipped": limit,
        },
        "training": {"max_steps": 6, "per_device_train_batch_size": 8},
    }


def test_a_broken_picture_is_left_out_and_listed_once(write_recipe, pictures):
    run = run_recipe(load_recipe(str(write_recipe(pictures / "recipe", changes(pictures, 0.05)))))
    entries = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert len(entries) == 1, "in two epochs"
    assert "7.png" in entries[0]["id"] + entries[0]["reason"]
    assert "truncated" in entries[0]["reason"].lower()
    assert len((run / "log.jsonl").read_text().splitlines()) == 6


def test_batches_of_one_pass_over_a_broken_picture(write_recipe, pictures):
    settings = changes(pictures, 0.05)
    settings["training"] |= {"per_device_train_batch_size": 1, "max_steps": 24, "logging_steps": 24}
    settings["stages"] = [{"weights": {"language": 1.0}}]
    run = run_recipe(load_recipe(str(write_recipe(pictures / "recipe", settings))))
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [24]
    [entry] = (run / "skipped.jsonl").read_text().splitlines()
    assert "7.png" in entry


def test_past_the_limit_the_command_stops_and_says_so(write_recipe, pictures):
    path = write_recipe(pictures / "recipe", changes(pictures, 0.01))
    command = [sys.executable, "-m", "limbeck.cli", "train", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert result.returncode == 2, result.stderr
    assert "1 of 24 records are broken, more than the 1.0% that max_skipped allows" in result.stderr
    assert "7.png" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (pictures / "recipe" / "run" / "student").exists()


def test_the_record_goes_on_after_a_kill(tmp_path):
    path = tmp_path / "skipped.jsonl"
    first, second = Skipped("a.jpg", "truncated"), Skipped("b.jpg", "no picture")
    SkipLog(path, 100, 0.05).add([first])
    with path.open("a") as file:
        file.write('{"id": "b.j')
    record = SkipLog(path, 100, 0.05)
    record.add([first, second, second])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a.jpg", "b.jpg"]
    assert list(record.entries) == ["a.jpg", "b.jpg"]


def test_only_what_this_call_left_out_counts_against_the_limit(tmp_path):
    path = tmp_path / "skipped.jsonl"
    with pytest.raises(DataError, match="2 of 100"):
        SkipLog(path, 100, 0.01).add([Skipped("a.jpg", "x"), Skipped("b.jpg", "x")])
    SkipLog(path, 100, 0.01).add([Skipped("c.jpg", "a.jpg and b.jpg were mended")])
    assert path.read_text().count("\n") == 3
