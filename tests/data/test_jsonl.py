"""JSONL: what is read, what is skipped with its line, what stops."""

import json
import pickle

import pytest
from PIL import Image

from limbeck.data.examples import DataError
from limbeck.data.jsonl import JsonlConfig, load_jsonl


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    return tmp_path


def write(folder, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(folder, **fields):
    return load_jsonl(JsonlConfig(**{"source": "jsonl", "path": "data.jsonl", **fields}), folder)


def test_records_become_examples(folder):
    write(
        folder,
        {"image": "a.png", "caption": "Ein Apfel, größer"},
        "",
        {"image": "b.png", "captions": ["one", "two"], "id": 7},
        {"image": "c.png", "questions": [{"question": "what?", "answers": ["x", "y"], "kind": "what", "id": 3}]},
        {"image": "c.png", "question": "how many?", "answer": "2"},
    )
    first, second, third = load(folder).examples
    assert (first.id, first.captions) == ("data.jsonl:1", ("Ein Apfel, größer",))
    assert (second.id, second.captions) == ("7", ("one", "two"))
    assert (third.questions[0].answers, third.questions[0].kind, third.questions[0].id) == (("x", "y"), "what", "3")
    assert (third.questions[1].answers, third.questions[1].id) == (("2",), "data.jsonl:5")
    assert first.image.open().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"image": "a.png", "caption": ', "not JSON"),
        ("[1, 2]", r"wanted an object, found a list \[1, 2\]"),
        ({"picture": "a.png", "caption": "x"}, "no field 'image'; it has picture, caption"),
        ({"image": 3, "caption": "x"}, "field 'image': wanted a text, found a number 3"),
        ({"image": "z.png", "caption": "x"}, r"no picture .*z\.png"),
        ({"image": "a.png", "caption": " ! "}, "field 'caption': the caption is empty"),
        ({"image": "a.png", "captions": ["x", None]}, "field 'captions': wanted texts, found nothing"),
        ({"image": "a.png", "caption": "a \ud83d dog"}, r"field 'caption': half a character at 2 .*a \\ud83d dog"),
        ({"image": "a.png", "captions": ["x", "\ud83d"]}, "field 'captions': half a character at 0"),
        ({"image": "a.png", "question": "\ud83d?", "answer": "x"}, "field 'question': half a character"),
        ({"image": "a.png", "question": "x", "answer": "\ud83d"}, "field 'answer': half a character"),
        ({"image": "a.png", "question": "x", "answers": ["\ud83d"]}, "field 'answers': half a character"),
        ({"image": "\ud83d.png", "caption": "x"}, "field 'image': half a character"),
        ({"image": "a.png"}, "no caption, captions, question or questions"),
        ({"image": "a.png", "question": "x", "answers": []}, "field 'answers': wanted a list of texts"),
    ],
)
def test_a_broken_record_is_skipped_with_its_line_and_reason(folder, record, reason):
    write(folder, {"image": "a.png", "caption": "x"}, record, {"image": "b.png", "caption": "y"})
    source = load(folder, max_skipped=0.5)
    assert [example.id for example in source.examples] == ["data.jsonl:1", "data.jsonl:3"]
    (skipped,) = source.skipped
    assert skipped.id.endswith("data.jsonl:2")
    with pytest.raises(
        DataError, match=rf"1 of 3 records are broken, more than the 1\.0%(.|\n)*data\.jsonl:2: {reason}"
    ):
        load(folder)


def test_records_are_chosen_by_their_fields(folder):
    splits = zip("abc", ("train", "val", "train"))
    write(folder, *({"image": f"{name}.png", "caption": "x", "split": split} for name, split in splits))
    assert [e.id for e in load(folder, where={"split": "train"}).examples] == ["data.jsonl:1", "data.jsonl:3"]
    assert len(load(folder, where={"split": "train"}, limit=1).examples) == 1
    with pytest.raises(DataError, match=r"no record with \{'split': 'test'\}: split is train, val"):
        load(folder, where={"split": "test"})


def test_records_are_chosen_by_their_numbers(folder):
    scores = zip("abc", (0.31, 0.2, 1))
    write(folder, *({"image": f"{name}.png", "caption": "x", "similarity": score} for name, score in scores))
    assert [e.id for e in load(folder, least={"similarity": 0.31}).examples] == ["data.jsonl:1", "data.jsonl:3"]
    with pytest.raises(DataError, match=r"no record with at least \{'similarity': 2\.0\}$"):
        load(folder, least={"similarity": 2})
    with pytest.raises(DataError, match=r"data\.jsonl:1: no field 'width'; it has image, caption, similarity"):
        load(folder, least={"width": 100})


def test_lines_about_one_picture_come_together_in_the_order_of_the_pictures(folder):
    named = [("b", "one"), ("a", "two"), ("b", "three"), ("c", "four"), ("b", "five")]
    write(folder, *({"image": f"{name}.png", "caption": caption} for name, caption in named))
    examples = load(folder).examples
    assert [(example.id, example.captions) for example in examples] == [
        ("data.jsonl:1", ("one", "three", "five")),
        ("data.jsonl:2", ("two",)),
        ("data.jsonl:4", ("four",)),
    ]
    assert [example.captions for example in load(folder, limit=2).examples] == [("one", "three"), ("two",)]
    assert pickle.loads(pickle.dumps(examples))[0] == examples[0]


def test_files_of_one_name_in_two_folders_give_different_ids(folder):
    ids = []
    for place in ("x", "y"):
        (folder / place).mkdir()
        (folder / place / "data.jsonl").write_text('{"image": "../a.png", "caption": "x"}\n')
        ids.append(load_jsonl(JsonlConfig(source="jsonl", path=f"{place}/data.jsonl"), folder).examples[0].id)
    assert ids == ["x/data.jsonl:1", "y/data.jsonl:1"]


def test_examples_survive_pickling_for_workers(folder):
    write(folder, {"image": "a.png", "caption": "x"})
    assert pickle.loads(pickle.dumps(load(folder).examples))[0] == load(folder).examples[0]


def test_other_names_of_fields(folder):
    write(folder, {"file": "a.png", "label": "apple"})
    assert load(folder, image_field="file", caption_field="label").examples[0].captions == ("apple",)


def test_what_is_missing_is_named_with_what_is_there(folder):
    with pytest.raises(DataError, match=r"data\.jsonl: no such file .* has a\.png, b\.png, c\.png"):
        load(folder)
    write(folder, {"image": "a.png", "caption": "x"})
    (folder / "photos").mkdir()
    with pytest.raises(DataError, match=r"photo: no such folder .*did you mean 'photos'\?"):
        load(folder, images="photo")
    with pytest.raises(DataError, match=r"dat\.jsonl: no such file .*did you mean 'data\.jsonl'\?"):
        load(folder, path="dat.jsonl")


def test_a_file_that_was_not_fetched_is_told_as_that(folder):
    write(folder, "version https://git-lfs.github.com/spec/v1", "oid sha256:4d7a", "size 123")
    with pytest.raises(DataError, match=r"data\.jsonl: a pointer of Git LFS, .*`git lfs pull`"):
        load(folder)
