"""Answers: the same in any batches, in a file that survives a kill."""

import json
from dataclasses import replace

import pytest
import torch
from positions import with_positions

from limbeck.data.examples import DataError
from limbeck.evaluation.generative.answering import answer_all, answers_to
from limbeck.evaluation.generative.model import AnsweringConfig, GenerativeModel, prepare


def answer(model, items, path, **fields):
    return answer_all(
        model, items, path, max_new_tokens=5, config=AnsweringConfig(batch_size=2, **fields), progress=False
    )


def count_calls(monkeypatch, fail_after: int | None = None) -> list[int]:
    """Note how many prompts each call of the model gets, and fail after so many calls."""
    write, calls = GenerativeModel.write, []

    def noted(self, inputs, max_new_tokens, config):
        if len(calls) == fail_after:
            raise KeyboardInterrupt
        calls.append(len(inputs["input_ids"]))
        return write(self, inputs, max_new_tokens, config)

    monkeypatch.setattr(GenerativeModel, "write", noted)
    return calls


def test_answers_are_what_transformers_writes_alone(vlm, items):
    wanted = []
    for item in items:
        content = [{"type": "image"}] * len(item.images) + [{"type": "text", "text": item.prompt}]
        text = vlm.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        pictures = [image.open() for image in item.images] or None
        inputs = vlm.processor(text=text, images=pictures, add_special_tokens=False, return_tensors="pt")
        written = vlm.model.generate(**inputs, max_new_tokens=5, do_sample=False)
        new = written[0, inputs["input_ids"].shape[1] :]
        wanted.append(vlm.processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert len(set(wanted)) > 6
    for size in (1, 2, 5, 16):
        assert answers_to(vlm, items, max_new_tokens=5, config=AnsweringConfig(batch_size=size)) == wanted


def test_the_picture_matters(vlm, items):
    shown = [item for item in items if item.images]
    swapped = [replace(item, images=other.images) for item, other in zip(shown, shown[1:] + shown[:1])]
    before, after = (answers_to(vlm, some, max_new_tokens=5) for some in (shown, swapped))
    assert before != after


def test_the_start_token_stands_once(vlm):
    inputs = prepare(vlm.processor, [vlm.render("a", 0), vlm.render("a longer one", 0)], [[], []])
    start = vlm.processor.tokenizer.bos_token_id
    assert (inputs["input_ids"] == start).sum(1).tolist() == [1, 1]
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert inputs["attention_mask"][0, 0] == 0


def test_rows_hold_item_prompt_and_answer(vlm, items, tmp_path):
    answers = answer(vlm, items, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == answers.rows
    assert [row["id"] for row in rows] == [item.id for item in items]
    assert rows[3] | {"prediction": "", "answered_by": ""} == {
        "id": "q3",
        **items[3].row,
        "prompt": items[3].prompt,
        "prediction": "",
        "answered_by": "",
    }
    assert [row["prediction"] for row in rows] == answers_to(vlm, items, max_new_tokens=5)


def test_a_killed_run_goes_on(vlm, items, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    answer(vlm, items, whole)
    with monkeypatch.context() as patch:
        count_calls(patch, fail_after=2)
        with pytest.raises(KeyboardInterrupt):
            answer(vlm, items, cut)
    lines = cut.read_text().splitlines()
    assert len(lines) == 4
    cut.write_text(cut.read_text() + lines[0][:30])
    with monkeypatch.context() as patch:
        calls = count_calls(patch)
        answer(vlm, items, cut)
    assert sum(calls) == 5
    assert cut.read_bytes() == whole.read_bytes()
    with monkeypatch.context() as patch:
        calls = count_calls(patch)
        answer(vlm, items, cut)
    assert calls == []


def test_only_the_same_models_answers_to_the_same_prompts_are_kept(vlm, another_vlm, items, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    first = answer(vlm, items, path).rows
    calls = count_calls(monkeypatch)
    changed = [replace(items[0], prompt="What else?"), replace(items[1], row={"answers": ["blue"]}), *items[2:]]
    rows = answer(vlm, changed, path).rows
    assert calls == [1]
    assert rows[1] == {name: first[1][name] for name in rows[1]} | {"answers": ["blue"]}
    assert "question" not in rows[1]
    calls.clear()
    other = answer(another_vlm, items, path).rows
    assert sum(calls) == len(items)
    assert [row["prediction"] for row in other] != [row["prediction"] for row in first]


def test_answers_end_where_a_model_has_no_more_positions_in_any_batches(vlm, items, tmp_path, monkeypatch):
    """The longest prompt has no room at all, the others have some."""
    texts = [item for item in items if not item.images]
    lengths = [vlm.length(vlm.render(item.prompt, 0)) for item in texts]
    assert lengths == sorted(lengths)
    model, wrote = with_positions(vlm, lengths[-1]), []
    write = GenerativeModel.write
    monkeypatch.setattr(
        GenerativeModel,
        "write",
        lambda own, inputs, most, config: (wrote.append(most), write(own, inputs, most, config))[1],
    )
    said = []
    for size in (1, 3):
        config = AnsweringConfig(batch_size=size, max_skipped=0.5)
        path = tmp_path / f"{size}.jsonl"
        answers = answer_all(model, texts, path, max_new_tokens=400, config=config, progress=False)
        assert [entry.id for entry in answers.skipped] == [texts[-1].id]
        assert "leave the model no position for an answer" in answers.skipped[0].reason
        said.append([row["prediction"] for row in answers.rows])
    assert said[0] == said[1]
    assert wrote == [lengths[-1] - length for length in (lengths[1], lengths[0])] * 2
    with pytest.raises(DataError, match="leave the model no position"):
        answers_to(model, texts, max_new_tokens=5)


def test_a_file_of_other_rows_is_not_taken_for_answers(vlm, items, tmp_path):
    path = tmp_path / "vqa.jsonl"
    path.write_text('{"id": "q1", "prediction": "red"}\n')
    with pytest.raises(ValueError, match=r"vqa.jsonl line 1: no row of answers"):
        answer(vlm, items, path)
    path.write_text('{"id": "q1",\n{"id"}\n')
    with pytest.raises(ValueError, match="line 1: not JSON"):
        answer(vlm, items, path)


def test_broken_pictures_are_left_out_up_to_a_share(vlm, items, tmp_path, broken_picture):
    items[0] = replace(items[0], images=(broken_picture,))
    with pytest.raises(DataError, match=r"1 of 9 records are broken(.|\n)*q0: cut short"):
        answer(vlm, items, tmp_path / "rows.jsonl")
    answers = answer(vlm, items, tmp_path / "rows.jsonl", max_skipped=0.2)
    assert [row["id"] for row in answers.rows] == [f"q{number}" for number in range(1, 9)]
    assert [skipped.id for skipped in answers.skipped] == ["q0"]


def test_ids_must_differ(vlm, items, tmp_path):
    with pytest.raises(ValueError, match="id of their own"):
        answer(vlm, [items[0], items[0]], tmp_path / "rows.jsonl")


def test_pictures_can_be_prepared_by_workers(vlm, items):
    config = AnsweringConfig(batch_size=4, workers=1)
    assert answers_to(vlm, items, max_new_tokens=5, config=config) == answers_to(vlm, items, max_new_tokens=5)


def test_a_folder_answers_like_the_model_it_was_saved_from(vlm, items, tmp_path):
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "top_p": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    loaded = GenerativeModel.from_folder(tmp_path)
    assert loaded.fingerprint() == vlm.fingerprint()
    assert answers_to(loaded, items, max_new_tokens=5) == answers_to(vlm, items, max_new_tokens=5)


def test_sampling_repeats_and_leaves_chance_elsewhere_alone(vlm, items):
    def sampled(seed: int, temperature: float = 2.0) -> list[str]:
        config = AnsweringConfig(temperature=temperature, top_p=0.9, seed=seed)
        return answers_to(vlm, items, max_new_tokens=5, config=config)

    torch.manual_seed(0)
    first, draw = sampled(0), torch.rand(1)
    assert sampled(0) == first
    assert sampled(1) != first
    assert sampled(0, temperature=1e-4) == answers_to(vlm, items, max_new_tokens=5)
    torch.manual_seed(0)
    assert torch.rand(1) == draw


def test_what_cannot_be_asked_is_refused(vlm, processor, monkeypatch):
    with pytest.raises(ValueError, match="cannot generate"):
        GenerativeModel(vlm.model.model.vision_tower, processor)
    with monkeypatch.context() as patch:
        patch.setattr(processor, "chat_template", None)
        with pytest.raises(ValueError, match="no chat template"):
            GenerativeModel(vlm.model, processor)
    with monkeypatch.context() as patch:
        patch.setitem(processor.tokenizer._special_tokens_map, "pad_token", None)
        with pytest.raises(ValueError, match="no padding token"):
            GenerativeModel(vlm.model, processor)


def test_an_empty_prompt_shows_the_picture_alone(vlm):
    assert vlm.render("", 1) == "<s>USER: <image>\n ASSISTANT:"
    assert vlm.render("Why?", 0) == "<s>USER: Why? ASSISTANT:"
