"""ScienceQA on LLaVA-1.5-13B's real prompts and outputs, whose score is published; SEED-Bench by hand."""

import json

import pytest
from PIL import Image

from limbeck.data.examples import DataError
from limbeck.evaluation.generative.benchmarks import load_benchmark, score, with_predictions
from limbeck.evaluation.generative.choices import ScienceQaConfig, SeedBenchConfig, scienceqa_answer


@pytest.fixture
def llava(real_data) -> dict[str, dict]:
    text = (real_data / "scienceqa_text" / "llava_v1.5_13b_predictions.jsonl").read_text()
    return {row["pid"]: row for row in map(json.loads, text.splitlines())}


def science(real_data, **fields) -> ScienceQaConfig:
    problems = str(real_data / "scienceqa_text" / "problems_test300.json")
    return ScienceQaConfig(benchmark="scienceqa", problems=problems, blind=True, **fields)


def test_scienceqa_asks_as_llava_did(real_data, llava):
    items = load_benchmark(science(real_data))
    assert len(items) == 300
    assert all(item.prompt == llava[item.id]["prompt"].removeprefix("<image>\n") for item in items)


def test_scienceqa_score_of_llava_as_published(real_data, llava):
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


def test_scienceqa_split_and_pictures(real_data, tmp_path):
    problems = json.loads((real_data / "scienceqa_text" / "problems_test300.json").read_text())
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
        ("Because. The answer is A.", 2, "A"),
        ("The answer is A", 2, "A"),
        ("The answer is a", 2, None),
        ("", 4, None),
    ],
)
def test_the_letter_is_found_by_llavas_rules(prediction, options, said):
    assert scienceqa_answer(prediction, options) == said


def test_seed_bench_by_hand(tmp_path):
    def question(id: str, kind: int, answer: str, data_type: str = "image") -> dict:
        choices = {f"choice_{letter}": f"the {letter}" for letter in "abcd"}
        return {
            **choices,
            "answer": answer,
            "data_id": "1_2",
            "data_type": data_type,
            "question": "Which one?",
            "question_id": id,
            "question_type_id": kind,
        }

    questions = [question("1", 1, "A"), question("2", 1, "B"), question("v", 1, "C", "video"), question("3", 2, "D")]
    file = tmp_path / "SEED-Bench.json"
    file.write_text(json.dumps({"questions": questions, "question_type": {"Scene": 1, "Identity": 2}}))
    Image.new("RGB", (4, 4)).save(tmp_path / "1_2", format="png")
    config = SeedBenchConfig(benchmark="seed_bench", questions="SEED-Bench.json", images=".")
    items = load_benchmark(config, tmp_path)
    assert [item.id for item in items] == ["1", "2", "3"]
    assert items[0].images[0].open().size == (4, 4)
    assert items[0].prompt == (
        "Which one?\nA. the a\nB. the b\nC. the c\nD. the d\n"
        "Answer with the option's letter from the given choices directly."
    )
    summary = score("seed_bench", with_predictions(items, {"1": " a. the a", "2": "the b", "3": "D"}))
    assert summary["accuracy"] == pytest.approx(200 / 3)
    assert summary["by_kind"] == {"Identity": 100, "Scene": 50}
    questions[1]["answer"] = "E"
    file.write_text(json.dumps({"questions": questions, "question_type": {"Scene": 1, "Identity": 2}}))
    with pytest.raises(DataError, match=r"questions\[1\]: wanted an answer from A to D"):
        load_benchmark(config, tmp_path)
    file.write_text(json.dumps({"questions": questions}))
    with pytest.raises(DataError, match="question_type"):
        load_benchmark(config, tmp_path)
