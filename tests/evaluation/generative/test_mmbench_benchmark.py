"""CircularEval by hand, on a file with rotations and on one without."""

import base64
import io

import pytest
from PIL import Image

from limbeck.data.examples import BrokenImage, DataError
from limbeck.evaluation.generative.benchmarks import load_benchmark, score, with_predictions
from limbeck.evaluation.generative.mmbench import MMBenchConfig, mmbench_answer

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category")


def picture() -> str:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


def write(path, rows: list[dict]) -> None:
    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(str(row.get(name, "nan")) for name in COLUMNS) for row in rows]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def rows() -> list[dict]:
    shared = {"image": picture(), "l2-category": "perception"}
    return [
        {"index": 5, "question": "Who?", "A": "cat", "B": "dog", "C": "cow", "answer": "B", "category": "a"} | shared,
        {"index": 8, "question": "Where?", "hint": "Look.", "A": "in", "B": "out", "answer": "A", "category": "b"}
        | shared,
    ]


@pytest.fixture
def config(tmp_path, rows) -> MMBenchConfig:
    write(tmp_path / "dev.tsv", rows)
    return MMBenchConfig(benchmark="mmbench", path=str(tmp_path / "dev.tsv"))


def right(items) -> dict[str, str]:
    return {item.id: item.row["answer"] for item in items}


def test_every_rotation_is_asked(config):
    items = load_benchmark(config)
    assert [item.id for item in items] == ["5/0", "5/1", "5/2", "8/0", "8/1"]
    assert [item.row["options"] for item in items[:3]] == [
        ["cat", "dog", "cow"],
        ["dog", "cow", "cat"],
        ["cow", "cat", "dog"],
    ]
    assert [item.row["answer"] for item in items] == ["B", "A", "C", "A", "B"]
    assert items[3].prompt == (
        "Look.\nWhere?\nA. in\nB. out\nAnswer with the option's letter from the given choices directly."
    )
    assert items[0].images[0].open().getpixel((0, 0)) == (255, 0, 0)


def test_a_question_counts_only_if_every_rotation_is_right(config):
    items = load_benchmark(config)
    assert score("mmbench", with_predictions(items, right(items)))["accuracy"] == 100
    summary = score("mmbench", with_predictions(items, right(items) | {"5/2": "A"}))
    assert summary["accuracy"] == 50
    assert summary["first_rotation"] == 100
    assert summary["by_kind"] == {"a": 0, "b": 100}
    assert summary["by_ability"] == {"perception": 50}
    always_a = score("mmbench", with_predictions(items, {item.id: "A" for item in items}))
    assert (always_a["accuracy"], always_a["first_rotation"]) == (0, 50)
    unreadable = score("mmbench", with_predictions(items, right(items) | {"8/0": "hm"}))
    assert (unreadable["accuracy"], unreadable["unmatched"]) == (50, 20)


def test_the_official_files_own_rotations_are_used(tmp_path, rows):
    turned = rows[1] | {"index": 1_000_008, "A": "out", "B": "in", "answer": "B"}
    write(tmp_path / "dev.tsv", [*rows, turned])
    items = load_benchmark(MMBenchConfig(benchmark="mmbench", path="dev.tsv"), tmp_path)
    assert [item.id for item in items] == ["5/0", "5/1", "5/2", "8/0", "8/1"]
    assert items[4].row["options"] == ["out", "in"]
    once = load_benchmark(MMBenchConfig(benchmark="mmbench", path="dev.tsv", circular=False, limit=2), tmp_path)
    assert [item.id for item in once] == ["5/0", "8/0"]


def test_a_split_without_answers_has_no_score(tmp_path, rows):
    write(tmp_path / "test.tsv", [{name: value for name, value in row.items() if name != "answer"} for row in rows])
    items = load_benchmark(MMBenchConfig(benchmark="mmbench", path="test.tsv"), tmp_path)
    assert score("mmbench", with_predictions(items, {item.id: "A" for item in items})) == {
        "questions": 2,
        "unmatched": 0,
    }


@pytest.mark.parametrize(
    ("prediction", "said"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. dog", "B"),
        ("The answer is B.", "B"),
        ("A dog, I think", "B"),
        ("It is a DOG", "B"),
        ("A", "A"),
        ("A or B", None),
        ("a cat and a dog", None),
        ("D", None),
        ("", None),
    ],
)
def test_answers_are_matched_by_rule(prediction, said):
    assert mmbench_answer(prediction, ["cat", "dog", "cow"]) == said


def test_wrong_files_are_named(tmp_path, rows):
    path = tmp_path / "dev.tsv"
    config = MMBenchConfig(benchmark="mmbench", path=str(path))
    path.write_text("index\tquestion\n1\tWhy?\n")
    with pytest.raises(DataError, match="no columns A, B, image; it has index, question"):
        load_benchmark(config)
    write(path, [rows[0] | {"answer": "D"}])
    with pytest.raises(DataError, match="index 5: answer 'D' of 3 options"):
        load_benchmark(config)
    write(path, [rows[0] | {"index": "five"}])
    with pytest.raises(DataError, match="row 2, index: wanted a number, found 'five'"):
        load_benchmark(config)
    write(path, [rows[0] | {"image": "%%%"}])
    with pytest.raises(BrokenImage, match="not base64"):
        load_benchmark(config)[0].images[0].open()
