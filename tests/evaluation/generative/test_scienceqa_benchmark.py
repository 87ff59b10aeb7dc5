"""ScienceQA on real problems and real outputs of LLaVA-1.5-13B, and the published averages of LLaVA and CoMD."""

import json

import pytest
from PIL import Image

from limbeck.data.examples import DataError
from limbeck.evaluation.generative.benchmarks import load_benchmark, score, with_predictions
from limbeck.evaluation.generative.scienceqa import ScienceQaConfig, scienceqa_answer


@pytest.fixture
def llava(real_data) -> dict[str, dict]:
    text = (real_data / "scienceqa_text" / "llava_v1.5_13b_predictions.jsonl").read_text()
    return {row["pid"]: row for row in map(json.loads, text.splitlines())}


@pytest.fixture
def problems(real_data) -> dict[str, dict]:
    return json.loads((real_data / "scienceqa_text" / "problems_test300.json").read_text())


def science(real_data, **fields) -> ScienceQaConfig:
    file = str(real_data / "scienceqa_text" / "problems_test300.json")
    return ScienceQaConfig(benchmark="scienceqa", problems=file, blind=True, **fields)


def test_the_letter_is_asked_for_as_llava_did(real_data, llava):
    items = load_benchmark(science(real_data))
    assert len(items) == 300
    assert all(item.prompt == llava[item.id]["prompt"].removeprefix("<image>\n") for item in items)


def test_score_of_llava_as_published(real_data, llava):
    items = load_benchmark(science(real_data))
    for item in items:
        options = len(item.row["options"])
        parsed = llava[item.id]["parsed_ans"]
        assert scienceqa_answer(llava[item.id]["pred"], options) == (parsed if parsed in "ABCDE"[:options] else None)
    summary = score("scienceqa", with_predictions(items, {id: row["pred"] for id, row in llava.items()}))
    assert round(summary["accuracy"], 2) == 74.00
    assert round(summary["image_accuracy"], 2) == 73.76
    with_image = load_benchmark(science(real_data, subset="image"))
    assert len(with_image) == 141
    summary = score("scienceqa", with_predictions(with_image, {id: row["pred"] for id, row in llava.items()}))
    assert round(summary["accuracy"], 2) == 73.76


def test_lecture_explanation_and_answer_are_asked_for_by_llavas_prompt(real_data, problems):
    items = {item.id: item for item in load_benchmark(science(real_data, target="lea"))}
    assert items["4"].prompt == (
        "Which figure of speech is used in this text?\nSing, O goddess, the anger of Achilles son of Peleus, that "
        "brought countless ills upon the Achaeans.\n—Homer, The Iliad\nContext: N/A\n"
        "Options: (A) chiasmus (B) apostrophe"
    )
    for id, item in items.items():
        choices = " ".join(f"({letter}) {choice}" for letter, choice in zip("ABCDE", problems[id]["choices"]))
        context = problems[id]["hint"].strip() or "N/A"
        wanted = f"{problems[id]['question']}\nContext: {context}\nOptions: {choices}\n".replace("  ", " ").strip()
        assert item.prompt == wanted
    assert science(real_data, target="lea").max_new_tokens == 1024
    assert science(real_data).max_new_tokens == 64


def test_an_answer_in_the_form_of_training_is_right(real_data, problems):
    items = load_benchmark(science(real_data, target="lea"))
    said = {}
    for id, problem in problems.items():
        said[id] = f"{problem['lecture']} {problem['solution']} The answer is {'ABCDE'[problem['answer']]}."
    assert score("scienceqa", with_predictions(items, said))["accuracy"] == 100


@pytest.mark.parametrize(
    ("subjects", "contexts", "average"),
    [
        ((91.83, 95.95, 88.91), {"TXT": 90.91, "IMG": 89.94, "NO": 91.08}, 91.94),
        ((90.36, 95.95, 88.00), {"TXT": 89.49, "IMG": 88.00, "NO": 90.66}, 90.92),
    ],
    ids=["CoMD", "LLaVA"],
)
def test_published_averages_follow_from_the_subjects(subjects, contexts, average):
    """Rows of the test split's 2,252 / 889 / 1,100 problems, as many of them right as the papers print."""
    rows = []
    for subject, accuracy, count in zip(("NAT", "SOC", "LAN"), subjects, (2252, 889, 1100)):
        right = round(accuracy / 100 * count)
        rows += [
            {
                "prediction": "The answer is B." if number < right else "The answer is A.",
                "options": ["no", "yes"],
                "answer": "B",
                "columns": [subject, *contexts],
            }
            for number in range(count)
        ]
    assert len(rows) == 4241
    summary = score("scienceqa", rows)
    assert round(summary["accuracy"], 2) == average
    assert tuple(round(summary["by_kind"][subject], 2) for subject in ("NAT", "SOC", "LAN")) == subjects


def test_columns_of_the_real_problems(real_data, problems):
    items = load_benchmark(science(real_data))
    counted: dict[str, int] = {}
    for item in items:
        for column in item.row["columns"]:
            counted[column] = counted.get(column, 0) + 1
    with_hint = sum(bool(problem["hint"]) for problem in problems.values())
    either = sum(bool(problem["hint"] or problem["image"]) for problem in problems.values())
    assert (counted["TXT"], counted["IMG"], counted["NO"]) == (with_hint, 141, 300 - either)
    assert counted["NAT"] + counted["SOC"] + counted["LAN"] == counted["G1-6"] + counted["G7-12"] == 300


def test_split_and_pictures(problems, tmp_path):
    chosen = [
        next(id for id, p in problems.items() if p["image"]),
        next(id for id, p in problems.items() if not p["image"]),
    ]
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"minitest": chosen, "test": ["0"]}))
    (tmp_path / chosen[0]).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / chosen[0] / "image.png")
    fields = {"benchmark": "scienceqa", "problems": "problems.json", "splits": "pid_splits.json", "images": "."}
    items = load_benchmark(ScienceQaConfig(**fields, split="minitest"), tmp_path)
    assert [(item.id, len(item.images)) for item in items] == [(chosen[0], 1), (chosen[1], 0)]
    columns = score("scienceqa", with_predictions(items, {chosen[0]: "?", chosen[1]: items[1].row["answer"]}))
    assert columns["accuracy"] == 50
    assert columns["by_kind"]["IMG"] == 0
    with pytest.raises(DataError, match=r"lacks 1 problems .* the first \['0'\]"):
        load_benchmark(ScienceQaConfig(**fields, split="test"), tmp_path)
    with pytest.raises(DataError, match="wanted an object with a list 'val'"):
        load_benchmark(ScienceQaConfig(**fields, split="val"), tmp_path)


@pytest.mark.parametrize(
    ("prediction", "options", "said"),
    [
        ("B", 2, "B"),
        (" B\n", 2, None),
        ("C", 2, None),
        ("B. apostrophe", 2, "B"),
        ("B apostrophe", 2, None),
        ("C. apostrophe", 2, None),
        ("Because. The answer is A.", 2, "A"),
        ("The answer is A", 2, None),
        ("The answer is a.", 2, None),
        ("The answer is C.", 2, None),
        ("The answer is A. No. The answer is B.", 2, None),
        ("", 4, None),
    ],
)
def test_the_letter_is_found_by_llavas_rules(prediction, options, said):
    assert scienceqa_answer(prediction, options) == said
