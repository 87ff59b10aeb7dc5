"""CoMD's shipped recipes: the paper's settings, ablations that change what they name, a twin that runs to the end."""

import json

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from limbeck.competition.pool import Pool
from limbeck.recipe import CoMDRecipe, load_recipe
from limbeck.run import run_recipe

PAPER = "comd/vicuna-7b"
ABLATIONS = {
    "comd/tau_0": {"competition.tau": 0.0},
    "comd/tau_0.67": {"competition.tau": 0.67},
    "comd/tau_1": {"competition.tau": 1.0},
    "comd/easy_only": {"competition.use_hard": False},
    "comd/lion": {"competition.difficulty": "lion"},
}


def settings(name: str) -> CoMDRecipe:
    recipe = load_recipe(name)
    assert isinstance(recipe, CoMDRecipe)
    return recipe


def leaves(values, path: str = "") -> dict[str, object]:
    """Every leaf of nested sections by its dotted path; lists are leaves."""
    if not isinstance(values, dict):
        return {path: values}
    return {leaf: found for key in values for leaf, found in leaves(values[key], f"{path}.{key}".lstrip(".")).items()}


def test_the_full_scale_recipe_has_the_papers_settings():
    recipe = settings(PAPER)
    assert recipe.competition is not None
    assert (recipe.competition.tau, recipe.competition.novelty, recipe.tunings) == (0.33, 0.7, 4)
    assert recipe.competition.difficulty == "comd"
    roles = (recipe.competition.answer, recipe.competition.assess, recipe.competition.augment)
    assert [role.temperature for role in roles] == [0.5, 0.5, 0.5]
    [connect] = recipe.stages
    assert connect.kind == "connect"
    for training, rate in ((connect.training, 2e-3), (recipe.competition.tuning.training, 2e-5)):
        assert training["learning_rate"] == rate
        assert 8 * training["per_device_train_batch_size"] == 16
        assert training["num_train_epochs"] == 1


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_names(name):
    paper, own = (leaves(json.loads(settings(each).model_dump_json())) for each in (PAPER, name))
    changed = {key: value for key, value in own.items() if value != paper[key]}
    assert changed == {"output": f"runs/{name}", **ABLATIONS[name]}


def test_without_pretraining_there_is_no_stage_before_the_competition():
    assert settings("comd/no_pretraining").stages == ()


def test_scienceqa_tunes_the_student_six_epochs_without_a_competition():
    recipe = settings("comd/scienceqa")
    assert recipe.competition is None
    assert [stage.training["num_train_epochs"] for stage in recipe.stages] == [6]


def test_the_debug_twin_runs_to_the_end(tmp_path):
    folder = run_recipe(load_recipe("comd/vicuna-7b-debug", [f"output={tmp_path / 'run'}"]))
    AutoModelForImageTextToText.from_pretrained(folder / "student")
    AutoProcessor.from_pretrained(folder / "student")
    with Pool.open(folder / "pool.sqlite", readonly=True) as pool:
        assert list(pool.closed_rounds()) == [1, 2, 3]
    assert (folder / "rounds" / "4" / "evaluation" / "summary.json").exists()
