"""Karpathy's, LAVIS' and VQA v2's own files, in small."""

import json

import pytest
from PIL import Image

from limbeck.data.coco import KarpathyConfig, LavisConfig, VqaConfig, load_karpathy, load_lavis, load_vqa
from limbeck.data.examples import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "val2014").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (8, 8)).save(tmp_path / "val2014" / f"COCO_val2014_{number:012d}.jpg")
    return tmp_path


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def karpathy_image(number, split, **fields):
    sentences = [{"raw": f"Picture {number}.", "tokens": []}, {"raw": "Again.", "tokens": []}]
    name = f"COCO_val2014_{number:012d}.jpg"
    return {"filepath": "val2014", "filename": name, "split": split, "sentences": sentences, "cocoid": number} | fields


def karpathy(folder, split, **fields):
    return load_karpathy(KarpathyConfig(source="karpathy", path="k.json", images=".", split=split, **fields), folder)


def test_karpathys_train_takes_restval_in(folder):
    images = [karpathy_image(number, split) for number, split in ((1, "train"), (2, "restval"), (3, "test"))]
    write(folder, "k.json", {"images": images, "dataset": "coco"})
    assert len(karpathy(folder, "train").examples) == 2
    (test,) = karpathy(folder, "test").examples
    assert test.captions == ("Picture 3.", "Again.")
    assert test.image.open().size == (8, 8)


def test_a_broken_entry_is_named_by_its_place(folder):
    broken = [karpathy_image(9, "train"), karpathy_image(1, "train", sentences=[{"raw": ""}])]
    write(folder, "k.json", {"images": [karpathy_image(2, "train"), *broken]})
    source = karpathy(folder, "train", max_skipped=0.7)
    assert len(source.examples) == 1
    assert [entry.id.rpartition(":")[2] for entry in source.skipped] == ["images[1]", "images[2]"]
    with pytest.raises(DataError, match=r"k\.json:images\[1\]: no picture .*000000000009\.jpg"):
        karpathy(folder, "train")


def test_another_json_file_is_refused(folder):
    write(folder, "k.json", {"annotations": []})
    with pytest.raises(DataError, match="wanted an object with a list 'images', found an object with annotations"):
        karpathy(folder, "train")
    (folder / "k.json").write_text('{"images": [}')
    with pytest.raises(DataError, match=r"k\.json:1:13: not JSON"):
        karpathy(folder, "train")


def test_lavis_rows_about_one_picture_come_together(folder):
    name = "val2014/COCO_val2014_{:012d}.jpg".format
    rows = [
        {"image": name(1), "caption": "one", "image_id": "coco_1"},
        {"image": name(2), "caption": ["two", "three"], "image_id": "coco_2"},
        {"image": name(1), "caption": "four", "image_id": "coco_1"},
    ]
    write(folder, "l.json", rows)
    source = load_lavis(LavisConfig(source="lavis", path="l.json", images="."), folder)
    assert [example.captions for example in source.examples] == [("one", "four"), ("two", "three")]


def vqa(folder, annotations="a.json", **fields):
    config = VqaConfig(source="vqa_v2", questions="q.json", annotations=annotations, images="val2014", **fields)
    return load_vqa(config, folder)


def test_vqa_joins_questions_annotations_and_pictures(folder):
    questions = [
        {"image_id": 1, "question": "Is it red?", "question_id": 1000},
        {"image_id": 2, "question": "What?", "question_id": 2000},
        {"image_id": 1, "question": "How many?", "question_id": 1001},
    ]
    annotations = [
        {"question_id": q["question_id"], "answer_type": "other", "answers": [{"answer": "x"}] * 9 + [{"answer": "y"}]}
        for q in questions
    ]
    write(folder, "q.json", {"questions": questions, "data_subtype": "val2014"})
    write(folder, "a.json", {"annotations": annotations})
    first, second = vqa(folder).examples
    assert first.id == "COCO_val2014_000000000001.jpg"
    assert [(q.id, q.text, q.kind) for q in first.questions] == [
        ("1000", "Is it red?", "other"),
        ("1001", "How many?", "other"),
    ]
    assert second.questions[0].answers == ("x",) * 9 + ("y",)
    assert vqa(folder, annotations=None).examples[0].questions[0].answers == ()
    with pytest.raises(DataError, match=r"image_name: a text \"\{number\}\.jpg\" is no template"):
        vqa(folder, image_name="{number}.jpg")
    write(folder, "a.json", {"annotations": annotations[:2]})
    with pytest.raises(DataError, match=r"questions\[2\]: question 1001 has no annotation"):
        vqa(folder)
