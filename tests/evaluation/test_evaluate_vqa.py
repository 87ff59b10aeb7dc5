"""Questions: ranking against the plain likelihood of every answer, writing, and what is kept."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from limbeck.data.dataset import normalize
from limbeck.data.examples import Question
from limbeck.data.transform import clean_caption
from limbeck.evaluation import vqa
from limbeck.evaluation.inputs import TaskConfig, encode, picture_batches, read_rows
from limbeck.evaluation.vqa import VQAConfig, common_answers, evaluate_vqa, recompute

ANSWERS = ["red", "green", "blue square", "white", "black", "yellow", "this is a square"]


def naive(model, tokenizer, examples, answers, smoothing):
    """The likeliest of all answers, each question and answer on its own."""
    cpu = torch.device("cpu")
    model.eval()
    chosen = []
    with torch.no_grad():
        for _, pixels in picture_batches(examples, 16, TaskConfig(batch_size=1), cpu):
            question = encode(tokenizer, ["which colour is it?"], 35, cpu)
            fused = model.fuse(model.image_memory(model.encode_image(pixels)), *question)
            memory = model.question_memory(fused.hidden, question[1])
            scores = []
            for answer in answers:
                ids, mask = encode(tokenizer, [answer], 10, cpu)
                logits = model.answer(memory, ids, mask).output[0, :-1]
                loss = functional.cross_entropy(logits, ids[0, 1:], label_smoothing=smoothing, reduction="sum")
                scores.append(-loss)
            chosen.append(answers[int(torch.stack(scores).argmax())])
    return chosen


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ranking_finds_the_likeliest_answer(blip, tokenizer, examples, tmp_path, cpu, smoothing):
    expected = naive(blip, tokenizer, examples, ANSWERS, smoothing)
    rows = tmp_path / "vqa.jsonl"
    config = VQAConfig(candidates=100, label_smoothing=smoothing, batch_size=4, pair_batch=5)
    evaluate_vqa(blip, tokenizer, examples, config, rows=rows, device=cpu, answers=ANSWERS, progress=False)
    assert [row["prediction"] for row in read_rows(rows)] == expected


def test_few_candidates_are_those_with_the_likeliest_first_token(blip, tokenizer, examples, tmp_path, cpu):
    rows = tmp_path / "vqa.jsonl"
    config = VQAConfig(candidates=1)
    evaluate_vqa(blip, tokenizer, examples, config, rows=rows, device=cpu, answers=ANSWERS, progress=False)
    blip.eval()
    ids, _ = encode(tokenizer, ANSWERS, 10, cpu)
    with torch.no_grad():
        for (_, pixels), row in zip(
            picture_batches(examples, 16, TaskConfig(batch_size=1), cpu), read_rows(rows), strict=True
        ):
            question = encode(tokenizer, [clean_caption("Which colour is it?")], 35, cpu)
            fused = blip.fuse(blip.image_memory(blip.encode_image(pixels)), *question)
            first = blip.answer(blip.question_memory(fused.hidden, question[1]), ids[:1, :1], None).output[0, 0]
            assert row["prediction"] == ANSWERS[int(first[ids[:, 1]].argmax())]


@pytest.mark.parametrize("mode", ["rank", "generate"])
def test_accuracy_rows_and_official_file_agree(blip, tokenizer, examples, tmp_path, cpu, mode):
    examples[0] = replace(
        examples[0], questions=(*examples[0].questions, Question(id="77", text="How many?", answers=("1",) * 10))
    )
    rows = tmp_path / "vqa.jsonl"
    config = VQAConfig(mode=mode)
    found = evaluate_vqa(blip, tokenizer, examples, config, rows=rows, device=cpu, answers=ANSWERS, progress=False)
    kept = read_rows(rows)
    assert len(kept) == 7
    assert found["accuracy"] == pytest.approx(100 * sum(row["accuracy"] for row in kept) / 7, abs=1e-3)
    assert set(found["by_kind"]) == {"colour"}
    assert recompute(rows) == found
    results = json.loads((tmp_path / "vqa_results.json").read_text())
    assert [result["question_id"] for result in results] == ["red-1", 77, *(f"{e.id}-1" for e in examples[1:])]
    if mode == "rank":
        assert all(row["prediction"] in ANSWERS for row in kept)


def test_questions_of_a_server_have_answers_in_the_results_file_alone(blip, tokenizer, examples, tmp_path, cpu):
    unknown = [
        replace(each, questions=tuple(replace(question, answers=()) for question in each.questions))
        for each in examples
    ]
    rows = tmp_path / "vqa.jsonl"
    config = VQAConfig(mode="generate")
    assert evaluate_vqa(blip, tokenizer, unknown, config, rows=rows, device=cpu, progress=False) == {}
    assert len(json.loads((tmp_path / "vqa_results.json").read_text())) == len(examples)
    both = [*examples[:2], *unknown[2:]]
    found = evaluate_vqa(blip, tokenizer, both, config, rows=rows, device=cpu, progress=False)
    assert found["accuracy"] == pytest.approx(50 * sum(row.get("accuracy", 0) for row in read_rows(rows)), abs=1e-3)


def test_the_list_of_answers_is_by_frequency(examples):
    twice = [*examples, examples[2]]
    assert common_answers(twice)[0] == "blue"
    assert common_answers(twice, at_least=2) == ["blue"]


def test_answers_are_spelt_as_training_spells_them(blip, tokenizer, examples, tmp_path, cpu, monkeypatch):
    asked = replace(examples[0], questions=(Question(id="1", text="When?", answers=("10:10 ", "Half  past", "2.5")),))
    answers = common_answers([asked])
    assert answers == ["10:10", "half past", "2.5"]
    read = []
    monkeypatch.setattr(
        vqa, "encode", lambda tokenizer, texts, *rest: read.append(texts) or encode(tokenizer, texts, *rest)
    )
    rows, config = tmp_path / "vqa.jsonl", VQAConfig()
    evaluate_vqa(blip, tokenizer, [asked], config, rows=rows, device=cpu, answers=answers, progress=False)
    assert read[0] == ["10:10", "half past", "2.5"]


def test_what_is_missing_is_said(blip, albef, tokenizer, examples, tmp_path, cpu):
    rows = tmp_path / "vqa.jsonl"
    with pytest.raises(ValueError, match="list of answers"):
        evaluate_vqa(blip, tokenizer, examples, VQAConfig(), rows=rows, device=cpu, progress=False)
    mute = [replace(example, questions=()) for example in examples]
    with pytest.raises(ValueError, match="no question"):
        evaluate_vqa(blip, tokenizer, mute, VQAConfig(), rows=rows, device=cpu, answers=ANSWERS, progress=False)
    with pytest.raises(ValueError, match="answer_decoder"):
        evaluate_vqa(albef, tokenizer, examples, VQAConfig(), rows=rows, device=cpu, answers=ANSWERS, progress=False)


def test_pictures_come_normalised_and_in_order(examples, cpu):
    batches = list(picture_batches(examples, 16, TaskConfig(batch_size=4), cpu))
    assert [example.id for batch, _ in batches for example in batch] == [example.id for example in examples]
    red = normalize(torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16).clone())
    assert torch.equal(batches[0][1][:1], red)
