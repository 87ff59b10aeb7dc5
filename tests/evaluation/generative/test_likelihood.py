"""Choices by likelihood: transformers' own loss, in any batches, resumed after a kill."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limbeck.data.examples import MadeImage
from limbeck.evaluation.generative import answering
from limbeck.evaluation.generative.answering import answer_all
from limbeck.evaluation.generative.items import Item
from limbeck.evaluation.generative.likelihood import log_likelihoods, spoken_tokens
from limbeck.evaluation.generative.model import AnsweringConfig, GenerativeModel, prepare

CHOICES = ("red", "a very dark green", "blue and white", "no")


@pytest.fixture
def choosing(items) -> list[Item]:
    return [replace(item, choices=CHOICES) for item in items]


def rank(model, items, path, size: int = 8, **fields) -> list[dict]:
    config = AnsweringConfig(batch_size=size, **fields)
    return answer_all(model, items, path, max_new_tokens=5, config=config, progress=False).rows


def by_hand(model: GenerativeModel, item: Item, choice: str) -> float:
    """The log-probability of a choice by transformers' loss on a row of its own."""
    begun = model.render(item.prompt, len(item.images))
    pictures = [image.open() for image in item.images] or None
    prompt, whole = (
        model.processor(text=[text], images=pictures, add_special_tokens=False, return_tensors="pt")
        for text in (begun, f"{begun} {choice}")
    )
    labels = whole["input_ids"].clone()
    labels[:, : prompt["input_ids"].shape[1]] = -100
    with torch.no_grad():
        loss = model.model(**whole, labels=labels).loss
    return -float(loss) * int((labels != -100).sum())


def test_log_probabilities_are_those_of_transformers_loss(vlm, choosing, tmp_path):
    rows = rank(vlm, choosing, tmp_path / "rows.jsonl")
    for item, row in zip(choosing, rows, strict=True):
        wanted = [by_hand(vlm, item, choice) for choice in CHOICES]
        assert row["log_probabilities"] == pytest.approx(wanted, abs=2e-3)
        assert row["tokens"] == [len(choice) + 1 for choice in CHOICES]  # the tokenizer's tokens are bytes
        assert row["prediction"] == "ABCD"[wanted.index(max(wanted))]


def test_batches_make_no_difference(vlm, choosing, tmp_path):
    first, *others = (rank(vlm, choosing, tmp_path / f"{size}.jsonl", size) for size in (1, 9, 64))
    for rows in others:
        for one, other in zip(first, rows, strict=True):
            assert one["log_probabilities"] == pytest.approx(other["log_probabilities"], abs=1e-3)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen3_vl", "smolvlm", "internvl"])
def test_every_kind_of_model_has_the_likelihood_of_its_own_loss(kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "models"))
    from tiny_vlms import picture, vlm

    model = GenerativeModel(*vlm(kind))
    items = [
        Item(
            id=str(number),
            prompt=f"Which colour{' really' * number}?",
            images=(MadeImage(str(number), lambda width=24 + 16 * number: picture(width)),) if number % 3 else (),
            choices=("red", "what colour it was", "no"),
            row={},
        )
        for number in range(4)
    ]
    for item, row in zip(items, rank(model, items, tmp_path / "rows.jsonl", 64), strict=True):
        for choice, found, tokens in zip(item.choices, row["log_probabilities"], row["tokens"], strict=True):
            text = model.render_answered(item.prompt, len(item.images), choice)
            inputs = prepare(model.processor, [text], [[image.open() for image in item.images]])
            labels = torch.full_like(inputs["input_ids"], -100)
            labels[:, -tokens:] = inputs["input_ids"][:, -tokens:]
            with torch.no_grad():
                loss = model.model(**inputs, labels=labels).loss
            assert found == pytest.approx(-float(loss) * tokens, abs=1e-3)


def test_a_killed_run_goes_on(vlm, choosing, tmp_path, monkeypatch):
    whole, cut, calls = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl", []
    rank(vlm, choosing, whole)

    def killed(model, inputs, spoken):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(spoken))
        return log_likelihoods(model, inputs, spoken)

    with monkeypatch.context() as patch:
        patch.setattr(answering, "log_likelihoods", killed)
        with pytest.raises(KeyboardInterrupt):
            rank(vlm, choosing, cut)
    assert calls == [8, 8]
    cut.write_text(cut.read_text() + '{"id": "q')
    rank(vlm, choosing, cut)
    assert cut.read_bytes() == whole.read_bytes()
    monkeypatch.setattr(answering, "log_likelihoods", None)
    rank(vlm, choosing, cut, temperature=0.5)


def test_answers_in_words_are_not_taken_for_choices(vlm, items, choosing, tmp_path):
    path = tmp_path / "rows.jsonl"
    rank(vlm, items, path)
    rows = rank(vlm, choosing, path)
    assert {row["prediction"] for row in rows} <= set("ABCD")
    assert len(json.loads(path.read_text().splitlines()[0])["tokens"]) == 4
    with pytest.raises(ValueError, match="some items have choices and some have none"):
        rank(vlm, [*items[:2], *choosing[2:]], path)


def test_a_model_without_logits_to_keep(vlm, monkeypatch):
    texts = [vlm.render_answered("Which?", 0, choice) for choice in CHOICES]
    spoken = [spoken_tokens(vlm, vlm.render("Which?", 0), text) for text in texts]

    def found() -> list[float]:
        inputs = prepare(vlm.processor, texts, [[]] * len(texts), padding_side="right")
        return log_likelihoods(vlm, inputs, spoken)

    wanted, forward = found(), vlm.model.forward
    monkeypatch.setattr(
        vlm.model,
        "forward",
        lambda input_ids, attention_mask, use_cache: forward(input_ids=input_ids, attention_mask=attention_mask),
    )
    assert found() == pytest.approx(wanted, abs=1e-4)
    monkeypatch.setattr(
        vlm.model,
        "forward",
        lambda input_ids, attention_mask, use_cache: forward(input_ids=input_ids, logits_to_keep=1),
    )
    with pytest.raises(ValueError, match=r"1 logits for \d+ tokens"):
        found()


def test_a_template_that_writes_answers_elsewhere_is_refused(vlm, processor, monkeypatch):
    assert vlm.render_answered("Why?", 0, " so ") == "<s>USER: Why? ASSISTANT: so"
    backwards = "{% for message in messages[::-1] %}{{ message['content'][0]['text'] }} {% endfor %}"
    monkeypatch.setattr(processor, "chat_template", backwards + "{% if add_generation_prompt %}>{% endif %}")
    with pytest.raises(ValueError, match="the one does not go on where the other ends"):
        vlm.render_answered("Why?", 0, "so")
