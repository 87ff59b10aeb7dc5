"""A DLIP run around its training: what its evaluation cannot do is said before, and a folder is about one model."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import BlipProcessor

from limbeck import cli
from limbeck.assemble.dlip import build_student, open_data, open_tokenizer
from limbeck.data.examples import DataError
from limbeck.errors import Halted
from limbeck.models.blip import Blip
from limbeck.models.fusion import FusionConfig
from limbeck.recipe import RecipeError, load_recipe
from limbeck.run import run_recipe
from limbeck.runs.dlip import evaluate_saved

SCENES = {"source": "builtin:scenes", "count": 8, "vocabulary": 36, "size": 32}
HELD_OUT = {**SCENES, "split": "test", "count": 4}
RECIPE = {
    "student": {
        "vision": {"width": 16, "layers": 1, "heads": 2, "image_size": 32},
        "text": {"width": 16, "layers": 1, "heads": 2, "max_positions": 64},
        "embedding": 8,
    },
    "tokenizer": {"tokenizer": "wordpiece", "vocab_size": 400},
    "data": {"train": [SCENES], "transform": {"size": 32}},
    "evaluation": {"data": [HELD_OUT], "retrieval": {"k_test": 2}},
    "training": {"max_steps": 1, "per_device_train_batch_size": 4, "report_to": []},
}


def recipe_in(folder: Path, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output": str(folder / "run"), **changes}))
    return load_recipe(str(path))


def saved_model(folder: Path, seed: int = 0, **parts):
    """A model of first weights with its tokenizer, `parts` of it left out or added."""
    recipe = recipe_in(folder.parent, seed=seed)
    tokenizer = open_tokenizer(recipe, open_data(recipe))
    model = build_student(recipe, tokenizer, None)
    if parts:
        model = Blip(FusionConfig.model_validate(model.config.model_dump() | parts))
    model.save(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path) -> Path:
    """A picture, and records about it with a caption alone and with a question alone."""
    saved = tmp_path / "picture.png"
    open_data(recipe_in(tmp_path)).examples[0].image.open().save(saved)
    records = {
        "captions": {"image": saved.name, "caption": "a thing"},
        "questions": {"image": saved.name, "question": "what is it?", "answer": "a thing"},
    }
    for name, record in records.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    return tmp_path


def lines(folder: Path, name: str) -> list[dict]:
    return [{"source": "jsonl", "path": str(folder / f"{name}.jsonl")}]


@pytest.mark.parametrize(
    ("evaluation", "training", "message"),
    [
        ({"captioning": {}, "data": "questions"}, None, r"evaluation\.captioning\.data: every example needs a caption"),
        ({"retrieval": {}, "data": "questions"}, None, r"evaluation\.retrieval\.data: every example needs a caption"),
        ({"vqa": {}, "data": "captions"}, None, r"evaluation\.vqa\.data: there is no question"),
        ({"vqa": {}, "data": "questions"}, "captions", r"evaluation\.vqa\.mode: rank .* evaluation\.vqa\.answers"),
        ({"vqa": {"answers": "no.json"}, "data": "questions"}, None, r"evaluation\.vqa\.answers: there is no file no"),
    ],
)
def test_data_that_a_task_cannot_use_is_refused_before_training(files, evaluation, training, message):
    evaluation = {**evaluation, "data": lines(files, evaluation["data"])}
    data = RECIPE["data"] | ({"train": lines(files, training)} if training else {})
    with pytest.raises(RecipeError, match=message):
        run_recipe(recipe_in(files, data=data, evaluation=evaluation))
    assert not (files / "run").exists()


@pytest.mark.parametrize("task", ["captioning", "vqa"])
def test_a_student_without_the_part_for_a_task_is_refused_before_training(tmp_path, task):
    student = RECIPE["student"] | {"family": "clip"}
    evaluation = {"data": [HELD_OUT], task: {}}
    with pytest.raises(RecipeError, match=rf"evaluation\.{task}: the student \(clip\) has no .*decoder"):
        run_recipe(recipe_in(tmp_path, student=student, evaluation=evaluation))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("captioning", {"decoder": "none"}),
        ("vqa", {"decoder": "none"}),
        ("vqa", {"encoder": False, "heads": False, "decoder": "separate"}),
        ("retrieval", {"heads": False}),
    ],
)
def test_a_teacher_without_the_part_for_a_task_is_refused_before_training(tmp_path, task, parts):
    place = str(saved_model(tmp_path / "teacher", **parts))
    changes = {"teacher": {"folders": [place]}, "tokenizer": {"tokenizer": "folder", "path": place}}
    with pytest.raises(RecipeError, match=rf"evaluation\.{task}: the teacher \(blip\) has no"):
        run_recipe(recipe_in(tmp_path, **changes, evaluation={"data": [HELD_OUT], task: {}}))
    assert not (tmp_path / "run").exists()


def test_an_evaluation_is_of_one_model_and_one_recipe(tmp_path):
    one, other = saved_model(tmp_path / "a"), saved_model(tmp_path / "b", seed=1)
    recipe, out = recipe_in(tmp_path), tmp_path / "eval"
    evaluate_saved(out, one, recipe)
    summary = (out / "evaluation" / "summary.json").read_text()
    with pytest.raises(RecipeError, match=r"eval holds the evaluation of another model; give --out"):
        evaluate_saved(out, other, recipe)
    changed = recipe_in(tmp_path, evaluation={"data": [HELD_OUT], "retrieval": {"k_test": 0}})
    with pytest.raises(RecipeError, match="of another recipe"):
        evaluate_saved(out, one, changed)
    assert (out / "evaluation" / "summary.json").read_text() == summary

    (out / "evaluation" / "summary.json").unlink()
    smaller = recipe_in(tmp_path, evaluation={"data": [HELD_OUT], "retrieval": {"k_test": 2, "batch_size": 2}})
    evaluate_saved(out, one, smaller)
    assert (out / "evaluation" / "summary.json").read_text() == summary
    (out / "evaluated.json").unlink()
    with pytest.raises(RecipeError, match="does not say which model"):
        evaluate_saved(out, one, recipe)


def test_an_evaluation_opens_training_data_only_to_rank_its_answers(tmp_path):
    model = saved_model(tmp_path / "model")
    data = RECIPE["data"] | {"train": lines(tmp_path, "gone")}
    evaluate_saved(tmp_path / "eval", model, recipe_in(tmp_path, data=data))
    assert (tmp_path / "eval" / "evaluation" / "summary.json").is_file()
    ranking = recipe_in(tmp_path, data=data, evaluation={"data": [HELD_OUT], "vqa": {}})
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        evaluate_saved(tmp_path / "ranked", model, ranking)


def test_an_export_that_was_cut_off_is_made_anew(tmp_path, monkeypatch):
    recipe = recipe_in(tmp_path, evaluation={}, export=["retrieval"])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BlipProcessor, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe)
    place = tmp_path / "run" / "export"
    assert not (place / "retrieval").exists()
    run_recipe(recipe)
    assert [folder.name for folder in place.iterdir()] == ["retrieval"]
    assert BlipProcessor.from_pretrained(place / "retrieval").image_processor.size == {"height": 32, "width": 32}


def test_a_run_that_breaks_after_training_keeps_its_traceback(tmp_path, monkeypatch):
    recipe_in(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluation").touch()
    monkeypatch.setattr(sys, "argv", ["limbeck", "train", str(tmp_path / "recipe.yaml")])
    for _ in ("training", "going on with what is trained"):
        with pytest.raises(OSError, match="evaluation"):
            cli.main()
    assert (tmp_path / "run" / "student" / "config.json").is_file()


def test_losses_on_captions_want_captions(files):
    both = lines(files, "captions") + lines(files, "questions")
    (files / "other.png").write_bytes((files / "picture.png").read_bytes())
    (files / "questions.jsonl").write_text('{"image": "other.png", "question": "what?", "answer": "it"}\n')
    data = RECIPE["data"] | {"train": both, "pairs": {"questions": 1}}
    message = (
        r"data\.train: 1 of 2 examples have no caption, and stages\.1\.weights train language on captions; .*answer: 1"
    )
    stages = [{"name": "a", "weights": {"answer": 1.0}}, {"name": "b", "weights": {"answer": 1.0, "language": 0.5}}]
    with pytest.raises(RecipeError, match=message):
        run_recipe(recipe_in(files, data=data, evaluation={}, stages=stages))
    assert not (files / "run").exists()
    stages = [{"weights": {"answer": 1.0, "language": 0.0}}]
    training = {**RECIPE["training"], "per_device_train_batch_size": 2}
    run = run_recipe(recipe_in(files, data=data, evaluation={}, stages=stages, training=training))
    assert (run / "student" / "config.json").is_file()


@pytest.mark.parametrize(
    ("questions", "weights", "reason"),
    [
        (0, {"answer": 1.0}, r"train answer on questions, but data\.pairs\.questions is 0; set"),
        (
            1,
            {"contrastive": 1.0, "answer": 0.5},
            r"train answer on questions, but no example of data\.train has one",
        ),
    ],
)
def test_losses_on_questions_want_questions(files, questions, weights, reason):
    data = RECIPE["data"] | {"train": lines(files, "captions"), "pairs": {"questions": questions}}
    recipe = recipe_in(files, data=data, evaluation={}, stages=[{"weights": weights}])
    with pytest.raises(RecipeError, match=rf"stages\.0\.weights {reason}"):
        run_recipe(recipe)
    assert not (files / "run").exists()


@pytest.mark.parametrize(
    ("task", "key"), [("captioning", "max_length"), ("vqa", "max_length"), ("vqa", "max_answer_length")]
)
def test_evaluations_longer_than_a_model_reads_are_refused_before_training(tmp_path, task, key):
    with pytest.raises(RecipeError, match=rf"evaluation\.{task}\.{key}: 65, but the student has 64 positions"):
        run_recipe(recipe_in(tmp_path, evaluation={"data": [HELD_OUT], task: {key: 65}}))
    assert not (tmp_path / "run").exists()


def test_captions_are_scored_on_pictures_of_different_ids(tmp_path):
    with pytest.raises(RecipeError, match=r"evaluation\.captioning\.data: .*one id for each picture; several have \["):
        run_recipe(recipe_in(tmp_path, evaluation={"captioning": {"data": [HELD_OUT, HELD_OUT]}}))
    assert not (tmp_path / "run").exists()


def test_a_run_that_failed_before_its_first_step_leaves_its_folder_free(tmp_path):
    def sized(size):
        return recipe_in(tmp_path, training={**RECIPE["training"], "per_device_train_batch_size": size}, evaluation={})

    with pytest.raises(DataError, match="do not fill one batch of 1000"):
        run_recipe(sized(1000))
    assert (tmp_path / "run" / "recipe.yaml").is_file()
    run_recipe(sized(2))
    with pytest.raises(RecipeError, match=r"differs in training\.per_device_train_batch_size"):
        run_recipe(sized(3))


def test_a_finished_run_goes_on_with_what_changes_no_result(tmp_path):
    run_recipe(recipe_in(tmp_path, evaluation={"data": [HELD_OUT], "retrieval": {}}))
    moved = tmp_path / "moved"
    (tmp_path / "run").rename(moved)
    evaluation = {"data": [HELD_OUT], "retrieval": {"batch_size": 2, "max_skipped": 0.5}}
    more = {"training": {**RECIPE["training"], "logging_steps": 7}, "export": ["retrieval"]}
    recipe = recipe_in(tmp_path, evaluation=evaluation, **more)
    recipe = recipe.model_copy(update={"output": str(moved)})
    run_recipe(recipe)
    assert (moved / "export" / "retrieval" / "config.json").is_file()


def test_a_run_does_not_go_on_with_other_data(files):
    data = RECIPE["data"] | {"train": lines(files, "captions")}
    recipe = recipe_in(
        files, data=data, evaluation={}, training={**RECIPE["training"], "per_device_train_batch_size": 1}
    )
    run = run_recipe(recipe)
    (run / "student" / "config.json").unlink()
    captions = files / "captions.jsonl"
    captions.write_text(captions.read_text().replace('"caption": "', '"caption": "quite '))
    with pytest.raises(RecipeError, match=r"run holds a run that began with other data \(fingerprint \w+, now \w+\)"):
        run_recipe(recipe)


def test_training_that_diverges_stops_and_saves_nothing(tmp_path):
    training = {**RECIPE["training"], "learning_rate": 1e18, "max_steps": 6, "logging_steps": 1, "max_grad_norm": 0.0}
    recipe = recipe_in(tmp_path, training=training, evaluation={}, stages=[{"weights": {"language": 1.0}}])
    with pytest.raises(Halted, match=r"stage pretrain diverged: by step \d no number comes out of language"):
        run_recipe(recipe)
    assert not [*(tmp_path / "run").rglob("*.safetensors")]


def test_a_hidden_word_is_the_tokenizers_own_mask(tmp_path):
    student = RECIPE["student"] | {
        "family": "albef",
        "text": {**RECIPE["student"]["text"], "layers": 2, "fusion_layers": 1},
    }
    recipe = recipe_in(tmp_path, student=student)
    tokenizer = open_tokenizer(recipe, open_data(recipe))
    with pytest.raises(RecipeError, match=r"dlip\.vlp\.mask_token_id: 103, but the tokenizer's \[MASK\] is 4"):
        build_student(recipe, tokenizer, None)
    for changes in ({"dlip": {"vlp": {"mask_token_id": 4}}}, {"stages": [{"weights": {"matching": 1.0}}]}):
        assert build_student(recipe_in(tmp_path, student=student, **changes), tokenizer, None) is not None


def test_photographs_hang_small_in_the_gallery(files):
    Image.new("RGB", (1280, 640), "green").save(files / "picture.png")
    recipe = recipe_in(files, evaluation={"data": lines(files, "captions"), "retrieval": {"k_test": 1}})
    evaluate_saved(files / "eval", saved_model(files / "model"), recipe)
    with Image.open(files / "eval" / "gallery" / "0.png") as picture:
        assert picture.size == (320, 160)
