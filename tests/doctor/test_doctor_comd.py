"""The doctor fails a CoMD recipe whose run would stop before it trains, and names what is wrong."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from limbeck.doctor.comd import examine_comd
from limbeck.recipe import CoMDRecipe, load_recipe


def found(folder: Path, **changes: Any) -> dict[str, tuple[str, str]]:
    """Status and text of each check of the paper's recipe with changes, on one instruction."""
    (folder / "i.csv").write_text("instruction\nwhat is it?\n")
    values = {
        "data.root": str(folder),
        "competition.data": [{"source": "instruction_file", "path": "i.csv"}],
        "evaluation.benchmarks": [],
        "judge": None,
        "teacher": {"folder": str(folder)},
        "training.deepspeed": None,
        "training.bf16": False,
        **changes,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    recipe = cast(CoMDRecipe, load_recipe("comd/vicuna-7b", overrides))
    return {each.check: (each.status, each.text) for each in examine_comd(recipe, processes=1)}


@pytest.mark.parametrize(
    ("changes", "check", "text"),
    [
        ({"assessor": {"folder": "./nowhere"}}, "assessor", "assessor.folder: ./nowhere: no such model folder"),
        ({"judge": {"folder": "./nowhere"}}, "judge", "judge.folder: ./nowhere: no such model folder"),
        (
            {"evaluation.benchmarks": [{"benchmark": "gqa", "questions": "q.json", "images": "."}]},
            "benchmarks",
            "q.json: no such file",
        ),
        ({"training.bf16": True, "training.fp16": True}, "training", "At most one of fp16 and bf16"),
    ],
)
def test_what_stops_a_run_at_once_is_a_failure(tmp_path, changes, check, text):
    checks = found(tmp_path, **changes)
    assert checks[check][0] == "failed"
    assert text in checks[check][1]
    assert "nothing more was looked at" in checks["the rest"][1]


def test_what_a_run_looks_at_first_is_told(tmp_path):
    checks = found(tmp_path)
    assert checks["training"] == ("ok", "TrainingArguments of connect, tune-1, tune-2, tune-3, tune-4")
    assert checks["teacher"] == ("ok", f"{tmp_path}, in this process")
    assert checks["competition"][0] == "ok"
