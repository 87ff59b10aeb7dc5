"""The doctor on DLIP recipes: what can be seen of student and teacher before training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from doctor_recipes import stir

from limbeck.assemble.dlip import build_student, open_data, open_tokenizer
from limbeck.doctor import examine, failed
from limbeck.recipe import RecipeError, load_recipe
from limbeck.run import run_recipe

STUDENT = {
    "family": "blip",
    "vision": {"width": 16, "layers": 1, "heads": 2, "patch_size": 16, "image_size": 32},
    "text": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0, "max_positions": 64},
    "embedding": 16,
}
RECIPE: dict[str, Any] = {
    "student": STUDENT,
    "tokenizer": {"tokenizer": "wordpiece", "vocab_size": 400},
    "data": {
        "train": [{"source": "builtin:scenes", "count": 24, "vocabulary": 36, "size": 32}],
        "transform": {"size": 32},
        "pairs": {"questions": 1},
    },
    "dlip": {"vlp": {"contrastive": {"queue_size": 8}}},
    "training": {"per_device_train_batch_size": 4, "max_steps": 20, "report_to": [], "use_cpu": True},
}


def recipe_in(folder: Path, **changes: Any):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output": str(folder / "run"), **changes}))
    return load_recipe(str(path))


def taught_by(folder: Path, change) -> dict[str, Any]:
    """The change of a recipe that has a teacher, whose first weights `change` was made to."""
    recipe = recipe_in(folder)
    tokenizer = open_tokenizer(recipe, open_data(recipe))
    teacher = build_student(recipe, tokenizer, None)
    with torch.no_grad():
        change(teacher)
    teacher.save(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    place = str(folder / "teacher")
    return {"teacher": {"folders": [place]}, "tokenizer": {"tokenizer": "folder", "path": place}}


def zero(model):
    for parameter in model.parameters():
        parameter.zero_()


def test_a_sound_recipe_is_fit(tmp_path):
    findings = {finding.check: finding for finding in examine(recipe_in(tmp_path, **taught_by(tmp_path, stir)))}
    assert not failed(list(findings.values())), findings
    assert list(findings) == ["tokenizer", "weights teacher", "gradients pretrain", "parameters", "memory", "speed"]
    trained = findings["parameters"].figures["trainable"]["pretrain"]
    assert not any(count for tower, count in trained.items() if tower.startswith(("teacher", "objective")))
    assert trained["student.vision"] == findings["parameters"].figures["parameters"]["teacher.vision"]
    assert findings["speed"].figures["pretrain"]["steps"] == 20


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [(zero, "models", "nothing but zeros"), (lambda _: None, "weights teacher", "first weights")],
)
def test_a_teacher_that_was_never_trained_is_refused(tmp_path, change, check, said):
    findings = {finding.check: finding for finding in examine(recipe_in(tmp_path, **taught_by(tmp_path, change)))}
    assert findings[check].status == "failed"
    assert said in findings[check].text
    assert findings["the rest"].status == "skipped"
    with pytest.raises((RecipeError, ValueError), match=said):
        run_recipe(recipe_in(tmp_path, **taught_by(tmp_path, change)))
    assert not (tmp_path / "run").exists(), "a run looks at this by itself"


def test_a_stage_that_leaves_parts_of_the_student_alone_says_so(tmp_path):
    stages = [{"name": "only_contrast", "weights": {"contrastive": 1.0}}]
    findings = {finding.check: finding for finding in examine(recipe_in(tmp_path, stages=stages), steps=False)}
    assert findings["gradients only_contrast"].status == "warning"
    assert "no gradient for student.text" in findings["gradients only_contrast"].text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluation": {"vqa": {"mode": "rank", "answers": "gone.json"}}},
            r"evaluation\.vqa\.answers: there is no file",
        ),
        (
            {"student": {**STUDENT, "family": "clip"}, "evaluation": {"captioning": {}}},
            r"evaluation\.captioning: the student",
        ),
    ],
)
def test_an_evaluation_that_would_fail_after_training_is_told(tmp_path, changes, message):
    held = [{"source": "builtin:scenes", "split": "test", "count": 4, "vocabulary": 36, "size": 32}]
    evaluation = {"data": held, "retrieval": None, "captioning": None, "vqa": None, **changes.get("evaluation", {})}
    found = examine(recipe_in(tmp_path, **{**changes, "evaluation": evaluation}), steps=False)
    assert [each.check for each in found if each.status == "failed"] == ["models"]
    assert re.search(message, found[0].text), found[0].text
