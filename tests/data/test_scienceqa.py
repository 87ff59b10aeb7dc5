"""ScienceQA's problems as conversations to train on."""

import json

import pytest
from PIL import Image
from pydantic import TypeAdapter

from limbeck.data.conversation_sources import ConversationSourceConfig, load_conversation_source
from limbeck.data.conversations import Turn
from limbeck.data.examples import DataError, FileImage

PROBLEM = {
    "question": "Which is heavier?",
    "choices": ["a feather", "a stone"],
    "answer": 1,
    "hint": "Look at the scales.",
    "image": "image.png",
    "grade": "grade7",
    "subject": "natural science",
    "lecture": "Scales compare.",
    "solution": "The stone's side is down.",
}


@pytest.fixture
def files(tmp_path):
    problems = {
        "1": PROBLEM,
        "2": PROBLEM | {"image": None, "hint": "", "lecture": "", "grade": "grade2"},
        "3": PROBLEM,
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["2", "1"], "val": ["3"]}))
    (tmp_path / "train" / "1").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "1" / "image.png")
    return tmp_path


def load(files, **fields):
    config = {"source": "scienceqa", "problems": "problems.json", "splits": "pid_splits.json", "images": "train"}
    adapter = TypeAdapter(ConversationSourceConfig)
    return load_conversation_source(adapter.validate_python(config | fields), files)


def test_question_context_options_then_lecture_explanation_answer(files):
    plain, shown = load(files).conversations
    assert (plain.id, plain.image, shown.id) == ("2", None, "1")
    assert isinstance(shown.image, FileImage)
    assert shown.image.open().size == (4, 4)
    options = "Options: (A) a feather (B) a stone"
    assert shown.turns == (
        Turn("user", f"Which is heavier?\nContext: Look at the scales.\n{options}"),
        Turn("assistant", "Scales compare. The stone's side is down. The answer is B."),
    )
    assert plain.turns == (
        Turn("user", f"Which is heavier?\nContext: N/A\n{options}"),
        Turn("assistant", "The stone's side is down. The answer is B."),
    )


def test_split_subset_and_limit(files):
    assert [conversation.id for conversation in load(files, subset="image").conversations] == ["1"]
    assert [conversation.id for conversation in load(files, limit=1).conversations] == ["2"]
    with pytest.raises(DataError, match=r"1 of 1 records are broken(.|\n)*problem 3: no picture"):
        load(files, split="val")
    with pytest.raises(DataError, match="wanted an object with a list 'test'"):
        load(files, split="test")


def test_a_broken_problem_is_left_out_up_to_a_share(files):
    problems = json.loads((files / "problems.json").read_text())
    problems["2"]["subject"] = "cooking"
    (files / "problems.json").write_text(json.dumps(problems))
    with pytest.raises(DataError, match=r"problem 2: wanted a subject of natural science, .*: cooking, grade2"):
        load(files)
    source = load(files, max_skipped=0.5)
    assert [conversation.id for conversation in source.conversations] == ["1"]
    assert [skipped.id for skipped in source.skipped] == ["problems.json:problem 2"]


def test_the_real_problems(real_data, tmp_path):
    file = real_data / "scienceqa_text" / "problems_test300.json"
    problems = json.loads(file.read_text())
    for id in problems:
        (tmp_path / id).mkdir()
        (tmp_path / id / "image.png").touch()
    source = load(tmp_path, problems=str(file), splits=None, images=".")
    assert len(source.conversations) == 300
    assert not source.skipped
    assert sum(conversation.image is not None for conversation in source.conversations) == 141
    for conversation in source.conversations:
        [(_, answer)] = conversation.exchanges
        assert answer.endswith(f"The answer is {'ABCDE'[problems[conversation.id]['answer']]}.")
