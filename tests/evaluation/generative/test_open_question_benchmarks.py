"""VQAv2 on real questions with answers of known score; TextVQA and GQA by hand."""

import json
from collections import Counter

import pytest
from PIL import Image

from limbeck.data.examples import DataError
from limbeck.evaluation.generative.benchmarks import (
    BENCHMARKS,
    evaluate_generative,
    load_benchmark,
    score,
    with_predictions,
)
from limbeck.evaluation.generative.open_questions import (
    GqaConfig,
    TextVqaConfig,
    VqaV2Config,
    evalai,
    score_gqa,
    textvqa_accuracy,
)


@pytest.fixture
def vqa(real_data, tmp_path):
    """The real questions about photos, in the official files."""
    folder = real_data / "vqa_v2"
    records = [json.loads(line) for line in (folder / "with_images.jsonl").read_text().splitlines()]
    (tmp_path / "photos").mkdir()
    for record in records:
        link = tmp_path / "photos" / f"COCO_val2014_{record['image_id']:012d}.jpg"
        if not link.exists():
            link.symlink_to(folder / record["image"])
    questions = [{name: r[name] for name in ("image_id", "question", "question_id")} for r in records]
    annotations = [
        {name: r[name] for name in ("question_id", "answer_type")} | {"answers": [{"answer": a} for a in r["answers"]]}
        for r in records
    ]
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
    fields = {"benchmark": "vqa_v2", "questions": "q.json", "images": "photos"}
    return records, fields, tmp_path


def leave_one_out(same: int) -> float:
    """What an answer that `same` of ten people gave is worth."""
    return (same * min(1, (same - 1) / 3) + (10 - same) * min(1, same / 3)) / 10


def test_vqa_v2_answers_of_known_score(vqa):
    records, fields, base = vqa
    items = load_benchmark(VqaV2Config(**fields, annotations="a.json"), base)
    assert len(items) == 112
    assert items[0].prompt.endswith("?\nAnswer the question using a single word or phrase.")
    assert items[0].images[0].open().mode == "RGB"
    plain = {str(r["question_id"]): Counter(a for a in r["answers"] if a.isalnum()) for r in records}
    said = {id: counts.most_common()[-1][0] if counts else "nothing" for id, counts in plain.items()}
    summary = score("vqa_v2", with_predictions(items, {id: f"The {answer.upper()}." for id, answer in said.items()}))
    worth = {id: leave_one_out(plain[id][answer]) for id, answer in said.items()}
    assert 20 < summary["accuracy"] < 90
    assert summary["accuracy"] == pytest.approx(100 * sum(worth.values()) / 112)
    kinds = {str(r["question_id"]): r["answer_type"] for r in records}
    for kind, value in summary["by_kind"].items():
        of_kind = [worth[id] for id in worth if kinds[id] == kind]
        assert value == pytest.approx(100 * sum(of_kind) / len(of_kind))
    assert set(summary["by_kind"]) == {"yes/no", "number", "other"}


def test_vqa_v2_without_annotations_has_a_submission_but_no_score(vqa):
    records, fields, base = vqa
    items = load_benchmark(VqaV2Config(**fields, limit=3), base)
    rows = with_predictions(items, {item.id: "It's the Dog's, two." for item in items})
    assert score("vqa_v2", rows) == {"questions": 3}
    submission = BENCHMARKS["vqa_v2"].submission
    assert submission is not None
    assert submission(rows)[0] == {"question_id": records[0]["question_id"], "answer": "it 's dog 's 2"}


def test_vqa_v2_names_what_is_missing(vqa):
    records, fields, base = vqa
    (base / "a.json").write_text(json.dumps({"annotations": []}))
    with pytest.raises(DataError, match=f"question {records[0]['question_id']} of .* has no annotation"):
        load_benchmark(VqaV2Config(**fields, annotations="a.json"), base)
    with pytest.raises(DataError, match=r"questions\[0\]: no picture .*COCO_train2014"):
        load_benchmark(VqaV2Config(**fields, image_name="COCO_train2014_{image_id:012d}.jpg"), base)
    with pytest.raises(DataError, match=r"b.json: no such file \(benchmark vqa_v2, field questions\)"):
        load_benchmark(VqaV2Config(**{**fields, "questions": "b.json"}), base)


def test_test_dev_questions_are_about_pictures_of_test(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "COCO_test2015_000000000007.jpg")
    question = {"image_id": 7, "question": "Why?", "question_id": 70}
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "test-dev2015", "questions": [question]}))
    (item,) = load_benchmark(VqaV2Config(benchmark="vqa_v2", questions="q.json", images="."), tmp_path)
    assert item.images[0].key.endswith("COCO_test2015_000000000007.jpg")


@pytest.fixture
def dev_split(tmp_path):
    """Two questions of test-dev, which are two of the four of the whole test split."""
    Image.new("RGB", (4, 4)).save(tmp_path / "COCO_test2015_000000000007.jpg")
    for name, subtype, ids in (("dev", "test-dev2015", (70, 72)), ("all", "test2015", (69, 70, 71, 72))):
        questions = [{"image_id": 7, "question": "Why?", "question_id": id} for id in ids]
        (tmp_path / f"{name}.json").write_text(json.dumps({"data_subtype": subtype, "questions": questions}))
    fields = {"benchmark": "vqa_v2", "questions": "dev.json", "images": ".", "max_new_tokens": 3}
    return tmp_path, fields


@pytest.mark.parametrize(("whole", "ids"), [({"all_questions": "all.json"}, {69, 70, 71, 72}), ({}, {70, 72})])
def test_a_submission_names_the_whole_split_where_the_server_wants_it(vlm, dev_split, tmp_path, whole, ids):
    base, fields = dev_split
    evaluate_generative(vlm, [VqaV2Config(**fields, **whole)], tmp_path, base=base, progress=False)
    submitted = json.loads((tmp_path / "evaluation" / "vqa_v2_results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "vqa_v2.jsonl").read_text().splitlines()]
    answers = {each["question_id"]: each["answer"] for each in submitted}
    assert answers == dict.fromkeys(ids, "") | {int(row["id"]): evalai(row["prediction"]) for row in rows}
    assert len(submitted) == len(ids)
    assert len(rows) == 2


def test_a_question_outside_the_whole_split_is_named(dev_split):
    base, fields = dev_split
    (base / "all.json").write_text(json.dumps({"questions": [{"question_id": 70}]}))
    with pytest.raises(DataError, match=r"all.json: question 72 of .*dev.json is not among these"):
        load_benchmark(VqaV2Config(**fields, all_questions="all.json"), base)
    with pytest.raises(DataError, match=r"gone.json: no such file \(benchmark vqa_v2, field all_questions\)"):
        load_benchmark(VqaV2Config(**fields, all_questions="gone.json"), base)


@pytest.fixture
def textvqa(tmp_path):
    answers = [["dakota"] * 2 + ["dakota digital"] * 8, ["nokia"] * 10]
    data = [
        {"question": f"what is the brand {n}?", "image_id": f"im{n}", "question_id": 34602 + n, "answers": answers[n]}
        for n in range(2)
    ]
    words = [{"image_id": f"im{n}", "ocr_tokens": ["DAKOTA", f"W{n}"]} for n in range(2)]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    (tmp_path / "ocr.json").write_text(json.dumps({"data": words}))
    for n in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"im{n}.jpg")
    return tmp_path


def test_textvqa_by_hand(textvqa):
    config = TextVqaConfig(benchmark="textvqa", questions="TextVQA_0.5.1_val.json", images=".")
    items = load_benchmark(config, textvqa)
    assert items[0].prompt == "what is the brand 0?\nAnswer the question using a single word or phrase."
    assert items[1].images[0].open().size == (4, 4)
    summary = score("textvqa", with_predictions(items, {"34602": "The Dakota.", "34603": "Nokia?"}))
    assert summary["accuracy"] == pytest.approx(100 * (leave_one_out(2) + 1) / 2)
    assert leave_one_out(2) == pytest.approx((2 / 3 + 16 / 3) / 10)


def test_textvqa_can_show_the_words_in_the_picture(textvqa):
    fields = {"benchmark": "textvqa", "questions": "TextVQA_0.5.1_val.json", "images": ".", "ocr": "ocr.json"}
    items = load_benchmark(TextVqaConfig(**fields), textvqa)
    assert items[1].prompt == (
        "what is the brand 1?\nReference OCR token: DAKOTA, W1\nAnswer the question using a single word or phrase."
    )
    assert items[1].row["question"] == "what is the brand 1?"
    (textvqa / "ocr.json").write_text(json.dumps({"data": [{"image_id": "im0", "ocr_tokens": []}]}))
    with pytest.raises(DataError, match="no words for picture im1"):
        load_benchmark(TextVqaConfig(**fields), textvqa)


def test_answers_are_normalised_as_on_the_server():
    assert evalai("It's the Dog's, isnt it? 1,000 or two") == "it 's dog 's isn't it 1000 or 2"
    assert textvqa_accuracy("12:30", ["12:30"] * 3 + ["half past"] * 7) == pytest.approx(leave_one_out(3))


def test_gqa_by_hand(tmp_path):
    questions = {
        "201": {"question": "Is it red?", "answer": "no", "imageId": "n1", "types": {"structural": "verify"}},
        "202": {"question": "What is it?", "answer": "tennis ball", "imageId": "n1", "types": {"structural": "query"}},
        "203": {"question": "Who is it?", "answer": "girl", "imageId": "n2", "types": {"structural": "query"}},
    }
    file = tmp_path / "testdev_balanced_questions.json"
    file.write_text(json.dumps(questions))
    for name in ("n1", "n2"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.jpg")
    config = GqaConfig(benchmark="gqa", questions=file.name, images=".")
    items = load_benchmark(config, tmp_path)
    assert [item.images[0].key for item in items] == [str(tmp_path / f"{name}.jpg") for name in ("n1", "n1", "n2")]
    rows = with_predictions(items, {"201": "No.", "202": "Tennis ball", "203": "the girl"})
    summary = score("gqa", rows)
    assert summary["accuracy"] == pytest.approx(200 / 3)
    assert (summary["binary"], summary["open"]) == (100, 50)
    assert summary["by_kind"] == {"query": 50, "verify": 100}
    assert [grade["accuracy"] for grade in score_gqa(rows).grades] == [1, 1, 0]
    del questions["203"]["answer"]
    file.write_text(json.dumps(questions))
    with pytest.raises(DataError, match=r"question 203: no field 'answer'"):
        load_benchmark(config, tmp_path)
    file.write_text("[]")
    with pytest.raises(DataError, match="wanted an object of questions by id, found a list"):
        load_benchmark(config, tmp_path)
