"""SEED-Bench by hand, by letter and by likelihood, and CoMD's published average."""

import json

import pytest
from PIL import Image

from limbeck.data.examples import DataError
from limbeck.evaluation.generative.benchmarks import evaluate_generative, load_benchmark, score, with_predictions
from limbeck.evaluation.generative.seed_bench import SeedBenchConfig

DIMENSIONS = {
    "Scene Understanding": (3158, 63.10),
    "Instance Identity": (1831, 51.50),
    "Instance Attributes": (4649, 53.80),
    "Instance Location": (978, 42.23),
    "Instance Counting": (2447, 34.36),
    "Spatial Relations": (657, 38.20),
    "Instance Interaction": (97, 51.54),
    "Visual Reasoning": (331, 64.35),
    "Text Recognition": (85, 47.05),
}
"""Number of questions, and CoMD's accuracy in them."""


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


@pytest.fixture
def file(tmp_path):
    questions = [question("1", 1, "A"), question("2", 1, "B"), question("v", 1, "C", "video"), question("3", 2, "D")]
    path = tmp_path / "SEED-Bench.json"
    path.write_text(json.dumps({"questions": questions, "question_type": {"Scene": 1, "Identity": 2}}))
    Image.new("RGB", (4, 4)).save(tmp_path / "1_2", format="png")
    return path


def config(**fields) -> SeedBenchConfig:
    return SeedBenchConfig(benchmark="seed_bench", questions="SEED-Bench.json", images=".", **fields)


def test_by_letter(file):
    items = load_benchmark(config(), file.parent)
    assert [item.id for item in items] == ["1", "2", "3"]
    assert items[0].images[0].open().size == (4, 4)
    assert items[0].choices == ()
    assert items[0].prompt == (
        "Which one?\nA. the a\nB. the b\nC. the c\nD. the d\n"
        "Answer with the option's letter from the given choices directly."
    )
    summary = score("seed_bench", with_predictions(items, {"1": " A. the a", "2": "the b", "3": "D"}))
    assert summary["accuracy"] == pytest.approx(200 / 3)
    assert summary["by_kind"] == {"Identity": 100, "Scene": 50}
    assert "per_token" not in summary


@pytest.mark.parametrize(("said", "right"), [("A", True), ("A.", True), ("a dog", False), ("a", False)])
def test_a_small_letter_is_no_choice(said, right):
    summary = score("seed_bench", [{"kind": "Scene", "answer": "A", "prediction": said}])
    assert summary["accuracy"] == 100 * right


def test_by_likelihood_the_question_stands_alone(vlm, file, tmp_path):
    items = load_benchmark(config(mode="likelihood"), file.parent)
    assert items[0].prompt == "Which one?"
    assert items[0].choices == ("the a", "the b", "the c", "the d")
    summary = evaluate_generative(vlm, [config(mode="likelihood")], tmp_path, base=file.parent, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "seed_bench.jsonl").read_text().splitlines()]
    for row in rows:
        values = row["log_probabilities"]
        assert row["prediction"] == "ABCD"[values.index(max(values))]
    right = [row["prediction"] == row["answer"] for row in rows]
    assert summary["seed_bench"]["accuracy"] == pytest.approx(100 * sum(right) / 3)
    assert score("seed_bench", rows) == summary["seed_bench"]


def test_the_sum_decides_and_the_mean_is_told_too():
    row = {"kind": "Scene", "answer": "B", "prediction": "A"}
    row |= {"log_probabilities": [-3.0, -4.0, -9.0, -9.0], "tokens": [1, 2, 1, 1]}
    summary = score("seed_bench", [row])
    assert summary["accuracy"] == 0
    assert summary["per_token"] == {"accuracy": 100, "by_kind": {"Scene": 100}}


def test_the_published_average_is_per_question():
    rows = []
    for kind, (count, accuracy) in DIMENSIONS.items():
        right = round(accuracy / 100 * count)
        rows += [{"kind": kind, "answer": "A", "prediction": "A" if n < right else "B"} for n in range(count)]
    summary = score("seed_bench", rows)
    assert summary["questions"] == 14233
    assert round(summary["accuracy"], 1) == 50.9
    assert abs(summary["accuracy"] - 50.90) < 0.01
    assert summary["by_kind"].keys() == DIMENSIONS.keys()


def test_broken_files_are_refused(file):
    content = json.loads(file.read_text())
    content["questions"][1]["answer"] = "E"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"questions\[1\]: wanted an answer from A to D"):
        load_benchmark(config(), file.parent)
    content["questions"][1] |= {"answer": "B", "choice_c": " "}
    file.write_text(json.dumps(content))
    assert len(load_benchmark(config(), file.parent)) == 3
    with pytest.raises(DataError, match="an empty choice has no likelihood"):
        load_benchmark(config(mode="likelihood"), file.parent)
    file.write_text(json.dumps({"questions": content["questions"]}))
    with pytest.raises(DataError, match="question_type"):
        load_benchmark(config(), file.parent)
