"""MMMU's files and its official way to read answers, by hand."""

import io

import pytest
from PIL import Image

from limbeck.data.examples import DataError
from limbeck.evaluation.generative.benchmarks import load_benchmark, score, with_predictions
from limbeck.evaluation.generative.mmmu import MmmuConfig, is_open_right, multiple_choice_answer, open_answer

pyarrow = pytest.importorskip("pyarrow")


def picture(colour: str) -> dict:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, "png")
    return {"bytes": stream.getvalue(), "path": None}


def lettered(id: str, **fields) -> dict:
    return {
        "id": id,
        "question": "Look at <image 1>. Which?",
        "options": "['$6', '<image 2>', \"it's 8\"]",
        "question_type": "multiple-choice",
        "answer": "B",
        "image_1": picture("red"),
        "image_2": picture("blue"),
    } | fields


@pytest.fixture
def folder(tmp_path):
    import pyarrow.parquet

    opened = lettered("validation_Math_2", options="[]", question_type="open", answer="['12.5', 'twelve']")
    subjects = {"Math": [lettered("validation_Math_1"), opened], "Art": [lettered("validation_Art_1", answer="C")]}
    for subject, records in subjects.items():
        (tmp_path / subject).mkdir()
        table = pyarrow.Table.from_pylist(records)
        pyarrow.parquet.write_table(table, tmp_path / subject / "validation-00000-of-00001.parquet")
    return tmp_path


def test_mmmu_by_hand(folder):
    items = load_benchmark(MmmuConfig(benchmark="mmmu", folder=str(folder)))
    assert [item.id for item in items] == ["validation_Art_1", "validation_Math_1", "validation_Math_2"]
    assert items[0].prompt == (
        "Look at <image 1>. Which?\n(A) $6\n(B) <image 2>\n(C) it's 8\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert items[2].prompt == "Look at <image 1>. Which?\nAnswer the question using a single word or phrase."
    assert [image.open().getpixel((0, 0)) for image in items[0].images] == [(255, 0, 0)]
    said = {"validation_Art_1": "(C)", "validation_Math_1": "A", "validation_Math_2": "So it is 12.50"}
    summary = score("mmmu", with_predictions(items, said))
    assert summary["accuracy"] == pytest.approx(200 / 3)
    assert summary["by_kind"] == {"Art": 100, "Math": 50}


def test_all_pictures_that_a_question_names_can_be_shown(folder):
    items = load_benchmark(MmmuConfig(benchmark="mmmu", folder=str(folder), images="all", limit=3))
    assert [[image.open().getpixel((0, 0)) for image in item.images] for item in items] == [
        [(255, 0, 0), (0, 0, 255)],
        [(255, 0, 0), (0, 0, 255)],
        [(255, 0, 0)],
    ]


@pytest.mark.parametrize(
    ("prediction", "said"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(A) or (C)", "C"),
        ("first (B), then A", "B"),
        ("Either A or B", "B"),
        ("I would say that the cow is it", "C"),
        ("the dog, not the cat and not the cow", "C"),
    ],
)
def test_letters_are_read_by_the_official_rules(prediction, said):
    assert multiple_choice_answer(prediction, ["cat", "dog", "cow"], "x") == said


def test_what_says_nothing_is_drawn_by_the_questions_id():
    drawn = {id: multiple_choice_answer("hm", ["cat", "dog", "cow"], id) for id in map(str, range(60))}
    assert set(drawn.values()) == {"A", "B", "C"}
    assert all(multiple_choice_answer("no idea", ["cat", "dog", "cow"], id) == said for id, said in drawn.items())


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        ("12.5", ["12.5"], True),
        ("The result is 12.50 metres.", ["12.5"], True),
        ("x = 1,250", ["1250"], True),
        ("It could be a Blue whale", ["blue whale", "orca"], True),
        ("12", ["12.5"], False),
        ("blue", ["blue whale"], False),
        ("vitamin", ["v"], False),
        ("the answer is v", ["v"], True),
    ],
)
def test_open_answers_are_read_by_the_official_rules(prediction, answers, right):
    assert is_open_right(open_answer(prediction), answers) is right


def test_open_answers_are_the_ends_of_sentences_and_their_numbers():
    assert open_answer("thus x is 3\nso the answer is = 4.") == [3.0, 4.0]
    assert open_answer("Paris") == ["paris"]


def test_wrong_folders_are_named(folder):
    with pytest.raises(DataError, match=r"no <subject>/test-\*.parquet"):
        load_benchmark(MmmuConfig(benchmark="mmmu", folder=str(folder), split="test"))
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([lettered("validation_Art_1", answer="D")])
    pyarrow.parquet.write_table(table, folder / "Art" / "validation-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"row 0: question validation_Art_1: answer 'D' is no letter of its 3 options"):
        load_benchmark(MmmuConfig(benchmark="mmmu", folder=str(folder)))
