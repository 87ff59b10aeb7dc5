"""The recipes that ship: all can be read and say what they are; DLIP's tiny twins run the same code from end to end.

CTVLM's and CoMD's have files of their own, test_shipped_ctvlm.py and test_shipped_comd.py.
"""

import json
from pathlib import Path

import pytest
import torch

from limbeck.assemble.dlip import build_student
from limbeck.data.tokenizer import BertTokenizer, load_tokenizer
from limbeck.models.convert import export
from limbeck.models.load import load_model
from limbeck.recipe import SHIPPED, DLIPRecipe, RecipeError, load_recipe, shipped_recipes
from limbeck.run import run_recipe

ALL = shipped_recipes()
FULL_SCALE = [
    name
    for name in ALL
    if not name.endswith(("-debug", "laptop", "laptop_teacher", "laptop_language")) and "quickstart" not in name
]
TWINS = [name for name in ALL if name.startswith("dlip/") and name.endswith("-debug")]
FULL = [name for name in FULL_SCALE if name.startswith("dlip/")]
PRETRAINING = [name for name in FULL if "finetune" not in name]


def header(name: str) -> dict[str, str]:
    """The comment above a recipe: its first line under "", then by the words before each colon."""
    lines = (SHIPPED / f"{name}.yaml").read_text().splitlines()
    fields: dict[str, str] = {}
    last = ""
    for line in lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]:
        text = line.removeprefix("# ")
        if text.startswith(" " * 8):
            fields[last] += f" {text.strip()}"
            continue
        last, colon, value = text.partition(": ") if fields else ("", ":", text)
        assert colon, line
        fields[last] = f"{fields.get(last, '')} {value.strip()}".strip()
    return fields


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_says_what_it_is_and_how_to_run_it(name):
    fields = header(name)
    assert fields[""].endswith(".")
    assert "limbeck" in fields["command"]
    assert fields["hardware"]
    if name in FULL_SCALE:
        assert f"-m limbeck.cli train {name} " in fields["command"]
        assert fields["expected"]
        assert "paper" in fields or "paper, ours" in fields


def test_no_two_recipes_write_into_one_folder():
    outputs = [load_recipe(name).output for name in ALL]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_has_the_papers_settings(name):
    recipe = load_recipe(name)
    training, schedule, transform = recipe.training, recipe.schedule, recipe.data.transform
    assert schedule is not None
    assert (training["learning_rate"], training["weight_decay"]) == (5e-4, 0.02)
    assert (schedule.kind, schedule.rate, schedule.warmup_steps) == ("epoch_exponential", 0.85, 3000)
    assert (training["num_train_epochs"], training["per_device_train_batch_size"]) == (20, 75)
    assert (transform.size, transform.crop, transform.flip, transform.randaugment) == (224, (0.2, 1.0), True, True)
    assert len(recipe.data.train) == (5 if name.endswith("12m") else 4)
    queue = recipe.dlip.vlp.contrastive.queue_size
    assert queue == (0 if "clip" in name else 57600)
    assert queue % (8 * training["per_device_train_batch_size"]) == 0


@pytest.mark.parametrize(
    ("name", "pictures", "rate", "epochs", "stage"),
    [
        ("dlip/finetune_retrieval_coco", 32, 1e-5, 6, {"contrastive": 1.0, "matching": 1.0}),
        ("dlip/finetune_retrieval_flickr", 32, 1e-5, 6, {"contrastive": 1.0, "matching": 1.0}),
        ("dlip/finetune_caption", 32, 1e-5, 5, {"language": 1.0}),
        ("dlip/finetune_vqa", 6, 2e-5, 10, {"answer": 1.0}),
        ("dlip/finetune_vqa_albef", 6, 2e-5, 10, {"answer": 1.0}),
    ],
)
def test_fine_tuning_has_blips_settings_at_384_pixels(name, pictures, rate, epochs, stage):
    recipe = load_recipe(name)
    assert recipe.teacher is None
    assert (recipe.student.image_size, recipe.data.transform.size) == (384, 384)
    assert recipe.training["per_device_train_batch_size"] == pictures
    assert (recipe.training["learning_rate"], recipe.training["weight_decay"]) == (rate, 0.05)
    assert recipe.training["num_train_epochs"] == epochs
    assert recipe.schedule is not None
    assert (recipe.schedule.kind, recipe.schedule.minimum, recipe.schedule.warmup_steps) == ("epoch_cosine", 0.0, 0)
    assert dict(recipe.stages[0].weights) == stage


def test_each_fine_tuning_has_its_tasks_own_settings():
    coco, flickr, caption, vqa = (
        load_recipe(f"dlip/finetune_{task}") for task in ("retrieval_coco", "retrieval_flickr", "caption", "vqa")
    )
    assert coco.dlip.vlp.contrastive.targets == flickr.dlip.vlp.contrastive.targets == "picture"
    assert (coco.dlip.vlp.contrastive.negatives, flickr.dlip.vlp.contrastive.negatives) == ("all", "rank")
    assert coco.evaluation.retrieval is not None
    assert flickr.evaluation.retrieval is not None
    assert (coco.evaluation.retrieval.k_test, flickr.evaluation.retrieval.k_test) == (256, 128)
    assert caption.evaluation.captioning is not None
    assert caption.data.pairs.prompt == caption.evaluation.captioning.prompt == "a picture of "
    tokenizer = load_tokenizer(BertTokenizer(tokenizer="bert"))
    prompt = tokenizer(caption.data.pairs.prompt.strip(), add_special_tokens=False)["input_ids"]
    assert caption.dlip.vlp.prompt_tokens == len(prompt)
    assert (vqa.student.answer_decoder, vqa.student.drop_path) == ("separate", 0.1)
    for recipe in (caption, vqa):
        assert recipe.dlip.vlp.contrastive.momentum is None


@pytest.mark.parametrize(
    ("name", "millions"),
    [("dlip/blip_base", 252.4), ("dlip/blip_middle", 120.2), ("dlip/blip_small", 51.7), ("dlip/fusion_12", None)]
    + [(f"dlip/fusion_{layers}", None) for layers in (1, 3, 6, 9)]
    + [("dlip/albef_base", None), ("dlip/albef_small", None), ("dlip/clip_base", None), ("dlip/clip_small", None)],
)
def test_full_scale_students_can_be_built_and_have_the_papers_size(name, millions):
    recipe = load_recipe(name, ["student.initial_vision=random"])
    tokenizer = load_tokenizer(BertTokenizer(tokenizer="bert"))
    with torch.device("meta"):
        student = build_student(recipe, tokenizer, None)
    count = sum(parameter.numel() for parameter in student.parameters())
    if millions is not None:
        assert count / 1e6 == pytest.approx(millions, abs=0.05)
    if recipe.student.text is not None and recipe.student.text.fusion_layers is not None:
        text = student.config.text
        assert text.layers - text.first_fusion_layer == recipe.student.text.fusion_layers


def shape(recipe: DLIPRecipe) -> tuple:
    """What decides which code a recipe runs."""
    terms = tuple(sorted(recipe.stages[0].weights))
    student = recipe.student
    fusion = student.text is not None and student.text.fusion_layers is not None
    text = student.initial_text == "random"
    return (student.family, student.folder is None, recipe.teacher is None, terms, fusion, text, student.answer_decoder)


def test_every_kind_of_full_scale_recipe_has_a_twin():
    twins = {shape(load_recipe(name)) for name in TWINS}
    for name in FULL:
        assert shape(load_recipe(name)) in twins, name


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_differs_in_size_and_data_alone(name):
    twin, full = load_recipe(name), load_recipe(name.removesuffix("-debug"))
    assert twin.output == full.output.replace("runs/dlip/", "runs/dlip/debug/", 1) or "finetune" in name
    assert twin.stages == full.stages
    assert twin.export == full.export
    assert twin.dlip.hidden == full.dlip.hidden
    assert twin.dlip.attention == full.dlip.attention
    assert twin.schedule is not None
    assert full.schedule is not None
    assert twin.schedule.kind == full.schedule.kind
    changed = {"max_steps", "per_device_train_batch_size", "dataloader_num_workers", "logging_steps", "save_steps"}
    assert {key for key in twin.training if twin.training[key] != full.training.get(key)} <= changed
    assert twin.evaluation.tasks.keys() == full.evaluation.tasks.keys()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A working folder in which the twins find each other's results."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(runs, monkeypatch):
    """Runs a twin once; returns its folder. What others need comes first."""
    monkeypatch.chdir(runs)

    def go(name: str, *overrides: str) -> Path:
        recipe = load_recipe(f"dlip/{name}-debug", overrides)
        folder = Path(recipe.output)
        if not (folder / "profile.json").exists():
            needed = [] if recipe.teacher is None else [Path(path) for path in recipe.teacher.folders]
            origins = (recipe.student.folder, recipe.student.initial_vision, recipe.student.initial_text)
            needed += [Path(path) for path in origins if path not in (None, "random")]
            for path in needed:
                if not path.exists():
                    go(path.parent.name)
            run_recipe(recipe)
        return folder

    return go


def last_line(folder: Path) -> dict:
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


BLIP = {"contrastive", "matching", "language"}
HIDDEN = {f"hidden/{name}" for name in ("image", "text", "fused", "decoded")}
ATTENTION = {f"attention/{name}/self" for name in ("image", "text", "fused", "decoded")}
CROSS = {"attention/fused/cross", "attention/decoded/cross"}


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("blip_base", BLIP),
        ("blip_small", BLIP | HIDDEN | ATTENTION | CROSS),
        pytest.param("blip_middle", BLIP | HIDDEN | ATTENTION | CROSS, marks=pytest.mark.slow),
        pytest.param("fusion_3", BLIP, marks=pytest.mark.slow),
        ("init_both", BLIP),
        (
            "albef_small",
            {"contrastive", "matching", "masked_language", "attention/fused/cross"}
            | {term for term in HIDDEN | ATTENTION if "decoded" not in term},
        ),
        (
            "clip_small",
            {"contrastive"} | {term for term in HIDDEN | ATTENTION if "image" in term or "text" in term},
        ),
        ("finetune_retrieval_coco", {"contrastive", "matching"}),
        pytest.param("finetune_retrieval_flickr", {"contrastive", "matching"}, marks=pytest.mark.slow),
        ("finetune_caption", {"language"}),
        ("finetune_vqa", {"answer"}),
        ("finetune_vqa_albef", {"answer"}),
    ],
)
def test_twins_train_the_terms_of_their_recipe_and_are_evaluated(run, name, terms):
    folder = run(name)
    line = last_line(folder)
    assert line["step"] == 2
    assert set(line["terms"]) == terms
    assert all(value == value and value >= 0 for value in line["terms"].values())
    recipe = load_recipe(f"dlip/{name}-debug")
    assert set(json.loads((folder / "evaluation" / "summary.json").read_text())) == set(recipe.evaluation.tasks)
    for task in recipe.export:
        assert (folder / "export" / task / "config.json").is_file()


def test_fine_tuning_goes_on_at_its_own_size_with_its_own_answer_decoder(run):
    before, after = load_model(run("blip_small") / "student"), load_model(run("finetune_vqa") / "student")
    assert (before.config.vision.image_size, after.config.vision.image_size) == (64, 96)
    assert after.config.vision.drop_path == 0.1
    assert after.answer_decoder is not None
    assert not torch.equal(after.answer_decoder.head.bias, after.text.head.bias)


def test_a_teacher_of_two_checkpoints_with_image_towers_of_their_own_distils(run, tmp_path):
    base = run("blip_base")
    other = load_model(base / "student")
    with torch.no_grad():
        other.vision.patches.weight.mul_(1.5)
    export(other, load_tokenizer(BertTokenizer(tokenizer="bert")), tmp_path / "captioning", task="captioning")
    folders = f"teacher.folders=[{base / 'export' / 'retrieval'}, {tmp_path / 'captioning'}]"
    folder = run("blip_small", folders, f"output={tmp_path / 'run'}", "evaluation.captioning=null", "export=[]")
    assert set(last_line(folder)["terms"]) == BLIP | HIDDEN | ATTENTION | CROSS


def test_a_teacher_for_larger_pictures_names_the_way_out(run, tmp_path):
    run("blip_base")
    with pytest.raises(RecipeError, match=r"image_size: 32, but the teacher's is 64; teacher.image_size=32"):
        run(
            "blip_small",
            "teacher.image_size=null",
            "student.vision.image_size=32",
            "data.transform.size=32",
            f"output={tmp_path}",
        )


def test_pictures_of_another_size_than_the_students_are_an_error(run, tmp_path):
    with pytest.raises(RecipeError, match=r"data.transform.size: 32, but the student's image_size is 64"):
        run("blip_base", "data.transform.size=32", f"output={tmp_path}")
