"""The gallery that a run of models that write leaves for the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from limbeck.data.examples import BrokenImage, MadeImage
from limbeck.evaluation.generative.items import Item
from limbeck.report.examples import RowKey, read_gallery
from limbeck.runs import gallery as module
from limbeck.runs.gallery import hang


def picture(key: str, size: tuple[int, int] = (40, 30)) -> MadeImage:
    return MadeImage(key, lambda: Image.new("RGB", size, "green"))


def asked(id: str, image: MadeImage | None, question: str = "how many?", **row: object) -> Item:
    images = () if image is None else (image,)
    return Item(id=id, prompt=question, images=images, row={"question": question, **row})


def described(id: str, image: MadeImage) -> Item:
    return Item(id=id, prompt="", images=(image,), row={"references": [f"caption of {id}"]})


def test_a_shared_picture_is_hung_once_with_all_that_was_asked_about_it(tmp_path: Path):
    shared = picture("shared")
    questions = [
        asked("q1", shared, answers=["two"]),
        asked("q2", shared, "which?", options=["red", "blue"], answer="B"),
    ]
    hang(tmp_path, {"vqa": questions, "captioning": [described("c1", shared), described("c2", picture("other"))]})
    first, second = read_gallery(tmp_path)
    assert first.captions == ("caption of c1",)
    assert first.written == RowKey("captioning", "c1")
    assert [(q.text, q.answers, q.row) for q in first.questions] == [
        ("how many?", ("two",), RowKey("vqa", "q1")),
        ("which? A. red B. blue", ("B",), RowKey("vqa", "q2")),
    ]
    assert (second.captions, second.questions) == (("caption of c2",), ())


def test_benchmarks_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PICTURES", 3)
    hang(
        tmp_path,
        {name: [asked(str(i), picture(f"{name} {i}"), answer="yes") for i in range(5)] for name in ("pope", "mme")},
    )
    assert [item.id for item in read_gallery(tmp_path)] == ["pope/0", "mme/0", "pope/1"]


def test_an_answer_that_is_secret_is_not_told(tmp_path: Path):
    hang(tmp_path, {"vqa_v2": [asked("1", picture("a"), answers=[])], "mmbench": [asked("2", picture("b"), answer="")]})
    assert [question.answers for item in read_gallery(tmp_path) for question in item.questions] == [(), ()]


def test_rotations_of_one_question_are_shown_once(tmp_path: Path):
    same = picture("same")
    hang(tmp_path, {"mmbench": [asked(f"7/{turn}", same, options=["a", "b"], answer="A") for turn in range(4)]})
    (item,) = read_gallery(tmp_path)
    assert [question.row for question in item.questions] == [RowKey("mmbench", "7/0")]


def test_a_picture_that_does_not_open_and_text_alone_are_left_out(tmp_path: Path):
    def fail() -> Image.Image:
        raise BrokenImage("cut short")

    hang(tmp_path, {"vqa": [asked("1", MadeImage("broken", fail)), asked("2", None), asked("3", picture("good"))]})
    (item,) = read_gallery(tmp_path)
    assert (item.id, item.file.name) == ("vqa/3", "0.png")


def test_large_pictures_are_made_small(tmp_path: Path):
    hang(tmp_path, {"vqa": [asked("1", picture("large", (1280, 640)))]})
    with Image.open(tmp_path / "0.png") as image:
        assert image.size == (module.SIDE, module.SIDE // 2)


def test_without_pictures_the_gallery_is_there_and_empty(tmp_path: Path):
    hang(tmp_path, {"scienceqa": [asked("1", None)]})
    assert json.loads((tmp_path / "gallery.json").read_text()) == []
