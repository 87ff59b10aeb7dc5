"""POPE on LLaVA-1.5-13B's real answers, whose scores are published; MME worked by hand."""

import json
from pathlib import Path

import pytest
from PIL import Image

from limbeck.data.examples import DataError
from limbeck.evaluation.generative.benchmarks import load_benchmark, score, with_predictions
from limbeck.evaluation.generative.yes_no import COGNITION, PERCEPTION, MmeConfig, PopeConfig, mme_answer, pope_answer


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pope_scores_of_llava_as_published(real_data):
    folder = real_data / "pope"
    items = load_benchmark(PopeConfig(benchmark="pope", folder=str(folder), blind=True))
    assert len(items) == 900
    assert items[0].prompt == ("Is there a snowboard in the image?\nAnswer the question using a single word or phrase.")
    said = {
        f"{split}/{row['question_id']}": row["text"]
        for split in ("random", "popular", "adversarial")
        for row in lines(folder / f"llava_v1.5_13b_{split}.jsonl")
        if row["text"] is not None
    }
    summary = score("pope", with_predictions([item for item in items if item.id in said], said))
    expected = json.loads((folder / "expected_llava_v1.5_13b.json").read_text())
    for split, values in summary["by_split"].items():
        wanted = expected[split]["first_300"]
        assert {name: round(value / 100, 4) for name, value in values.items()} == {
            "accuracy": wanted["accuracy"],
            "precision": wanted["precision"],
            "recall": wanted["recall"],
            "F1": wanted["f1"],
            "yes_ratio": wanted["yes_ratio"],
        }
    assert summary["F1"] == pytest.approx(100 * (0.8797 + 0.8667 + 0.8298) / 3, abs=0.005)


@pytest.mark.parametrize(
    ("prediction", "said"),
    [
        ("No", "no"),
        ("no, there is none", "no"),
        ("There is not a dog.", "no"),
        ("Yes. There is no doubt.", "yes"),
        ("NO", "yes"),
        ("None", "yes"),
        ("", "yes"),
    ],
)
def test_popes_rule_is_the_official_one(prediction, said):
    assert pope_answer(prediction) == said


def test_pope_says_no_to_everything(real_data):
    items = load_benchmark(
        PopeConfig(benchmark="pope", folder=str(real_data / "pope"), blind=True, limit=6, splits=("random",))
    )
    summary = score("pope", with_predictions(items, {item.id: "no" for item in items}))
    assert summary["by_split"]["random"] == {"accuracy": 50, "precision": 0, "recall": 0, "F1": 0, "yes_ratio": 0}


def test_pope_shows_its_pictures_and_says_what_is_wrong(real_data, tmp_path):
    folder = str(real_data / "pope")
    with pytest.raises(DataError, match="give `images`"):
        load_benchmark(PopeConfig(benchmark="pope", folder=folder))
    with pytest.raises(DataError, match=r"coco_pope_random.json:1: no picture .*COCO_val2014_000000310196.jpg"):
        load_benchmark(PopeConfig(benchmark="pope", folder=folder, images=str(tmp_path)))
    (tmp_path / "coco_pope_random.json").write_text(
        '{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "maybe"}\n'
    )
    with pytest.raises(
        DataError, match=r"coco_pope_random.json:1: wanted the answer yes or no, found a text \"maybe\""
    ):
        load_benchmark(PopeConfig(benchmark="pope", folder=".", blind=True), tmp_path)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.jpg")
    (tmp_path / "coco_pope_random.json").write_text(
        '{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "no"}\n'
    )
    (item,) = load_benchmark(PopeConfig(benchmark="pope", folder=".", images=".", splits=("random",)), tmp_path)
    assert item.images[0].open().size == (4, 4)


@pytest.fixture
def mme(tmp_path) -> Path:
    """Two pictures of each subtask, the first with the answers yes and no, the second with no and yes."""
    for number, task in enumerate((*PERCEPTION, *COGNITION)):
        folder = tmp_path / task
        texts = folder / "questions_answers_YN" if number % 2 else folder
        images = folder / "images" if number % 2 else folder
        for name, answers in (("0001", ("Yes", "No")), ("0002", ("No", "Yes"))):
            texts.mkdir(parents=True, exist_ok=True)
            images.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(images / f"{name}.{'png' if number % 2 else 'jpg'}")
            (texts / f"{name}.txt").write_text(
                "".join(f"Is {task} {n}? Please answer yes or no.\t{answer}\n" for n, answer in enumerate(answers))
            )
    return tmp_path


def test_mme_by_hand(mme):
    items = load_benchmark(MmeConfig(benchmark="mme", folder=str(mme)))
    assert len(items) == 14 * 4
    assert items[0].prompt == "Is existence 0?\nAnswer the question using a single word or phrase."
    assert all(item.images[0].open().size == (4, 4) for item in items)
    always_yes = score("mme", with_predictions(items, {item.id: "Yes." for item in items}))
    assert always_yes["by_task"]["OCR"] == {"score": 50, "accuracy": 50, "accuracy_plus": 0}
    assert (always_yes["perception"], always_yes["cognition"], always_yes["total"]) == (500, 200, 700)
    right = {item.id: item.row["answer"] for item in items}
    assert score("mme", with_predictions(items, right))["total"] == 2800
    wrong = right | {"count/0002/1": "yes", "existence/0001/2": "The answer is no"}
    summary = score("mme", with_predictions(items, wrong))
    assert summary["by_task"]["count"] == {"score": 125, "accuracy": 75, "accuracy_plus": 50}
    assert summary["perception"] == 2000 - 75 - 75
    assert summary["cognition"] == 800


def test_mmes_rule_is_the_official_one():
    said = ["Yes", "no.", "Not", "A no", "A yes", "", "y"]
    assert [mme_answer(one) for one in said] == ["yes", "no", "no", "no", "other", "other", "other"]


def test_mme_says_what_is_wrong(mme):
    (mme / "OCR" / "images").mkdir(exist_ok=True)
    text = next((mme / "OCR").rglob("0001.txt"))
    text.write_text("Is it?\tYes\n")
    with pytest.raises(DataError, match=r"0001.txt: wanted two lines of question<tab>answer, found 1"):
        load_benchmark(MmeConfig(benchmark="mme", folder=str(mme)))
    text.write_text("Is it?\tYes\nIs it? No\n")
    with pytest.raises(DataError, match=r"0001.txt:2: wanted question<tab>answer"):
        load_benchmark(MmeConfig(benchmark="mme", folder=str(mme)))
    next((mme / "count").rglob("0002.png")).unlink()
    with pytest.raises(DataError, match=r"no picture 0002.jpg or .png"):
        load_benchmark(MmeConfig(benchmark="mme", folder=str(mme)))
