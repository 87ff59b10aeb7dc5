"""CTVLM's divergence on answers that the student samples: its share of a step, and how long answers may be."""

import pytest
import torch
from tiny_ctvlm import EOS, PAD, make_conversations, make_ctvlm, make_duet, make_stage, slice_of, with_counts

from limbeck.methods.ctvlm import CTVLM
from limbeck.models.duet import Duet
from limbeck.types import IGNORE, ConversationBatch


def make_sampling(kind: str, duet: Duet | None = None) -> CTVLM:
    return make_ctvlm(make_stage(kind, on_policy=True, stop_token_id=EOS, pad_token_id=PAD), duet=duet)


def certain(duet: Duet) -> Duet:
    """A duet whose models leave sampling nothing to chance: one word is far likelier than all others."""
    with torch.no_grad():
        duet.tiny.project_out.weight *= 1e4
        duet.large.lm_head.weight *= 1e4
    return duet


def repeated(batch: ConversationBatch, times: int) -> ConversationBatch:
    return {name: torch.cat([value] * times) for name, value in batch.items()}


@pytest.mark.parametrize("kind", ["align_large", "tune"])
def test_a_split_step_is_a_whole_step(kind):
    method = make_sampling(kind, certain(make_duet()))
    half = make_conversations(2, asked=kind == "tune")
    whole = repeated(half, 2)
    expected = method(with_counts(whole)).terms
    parts = [method(with_counts(slice_of(whole, *rows), whole)).terms for rows in ((0, 2), (2, 4))]
    assert any(name.endswith("_kl") for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "on_policy", "passes"),
    [
        ("language", False, 0),
        ("align_tiny", False, 1),
        ("align_large", False, 1),
        ("align_large", True, 1),
        ("tune", False, 1),
        ("tune", True, 1),
    ],
)
def test_the_eye_runs_once_a_batch_whatever_reads_the_picture(kind, on_policy, passes):
    method = make_sampling(kind) if on_policy else make_ctvlm(make_stage(kind))
    seen = []
    method.duet.tiny.eye.register_forward_hook(lambda _eye, _given, _output: seen.append(1))
    method(with_counts(make_conversations(4, asked=kind in ("language", "tune"))))
    assert len(seen) == passes


@pytest.mark.parametrize("kind", ["align_large", "tune"])
def test_sampling_leaves_what_is_frozen_without_dropout(kind):
    method = make_sampling(kind)
    before = {name: module.training for name, module in method.named_modules()}
    assert not before["duet.tiny.eye"]
    assert before["duet.tiny.body"] == before["duet.large"] == (kind == "tune")
    method(with_counts(make_conversations(2, asked=kind == "tune")))
    assert {name: module.training for name, module in method.named_modules()} == before


@pytest.mark.parametrize("kind", ["align_large", "tune"])
def test_answers_are_sampled_from_the_whole_distribution(kind):
    method = make_sampling(kind)
    for model in (method.duet, method.duet.tiny):
        settings = model.generation_config
        settings.top_k, settings.top_p, settings.temperature, settings.repetition_penalty = 1, 0.1, 0.01, 5.0
    batch = with_counts(make_conversations(8, asked=kind == "tune"))
    said = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ids, _, labels = method._sample(batch, method.duet.tiny.see(batch["pixel_values"]))
        said.append(ids[:, 1:][labels[:, :-1] != IGNORE].tolist())
    assert said[0] != said[1], "with the models' own settings there would be one answer alone"


def test_sampled_answers_are_no_longer_than_the_longest_first_answer(monkeypatch):
    method, asked = make_sampling("tune", make_duet()), []
    batch = make_conversations(2, asked=True)
    first = int((batch["labels"] != IGNORE).sum(1).max())
    later, pad = 20, torch.nn.functional.pad
    batch["labels"] = pad(pad(pad(batch["labels"], (0, 3), value=IGNORE), (0, later), value=7), (0, 1), value=IGNORE)
    for name in ("input_ids", "attention_mask"):
        batch[name] = pad(batch[name], (0, 3 + later + 1), value=7)
    generate = method.duet.tiny.generate
    monkeypatch.setattr(
        method.duet.tiny,
        "generate",
        lambda *given, **options: (asked.append(options["max_new_tokens"]), generate(*given, **options))[1],
    )
    method(with_counts(batch))
    assert asked == [first]


def long_batch(prompt: int, answer: int) -> ConversationBatch:
    """A long question with a short answer beside a short question with a long answer."""
    first, second = make_conversations(2, asked=True), make_conversations(2, asked=True, seed=1)
    rows = []
    for batch, asked, said in ((first, prompt, 1), (second, 1, answer)):
        start = batch["input_ids"][0, :8]
        words = torch.arange(asked + said) % 20 + 5
        ids = torch.cat([start, words, torch.tensor([EOS])])
        labels = torch.full_like(ids, IGNORE)
        labels[-said - 2 : -1] = ids[-said - 1 :]
        rows.append((ids, labels))
    length = max(len(ids) for ids, _ in rows)
    batch = {name: torch.cat([first[name][:1], second[name][:1]]) for name in ("pixel_values", "image_id", "has_image")}
    batch["input_ids"], batch["labels"] = torch.full((2, length), PAD), torch.full((2, length), IGNORE)
    batch["attention_mask"] = torch.zeros(2, length, dtype=torch.bool)
    for row, (ids, labels) in enumerate(rows):
        batch["input_ids"][row, : len(ids)], batch["labels"][row, : len(ids)] = ids, labels
        batch["attention_mask"][row, : len(ids)] = True
    return batch


@pytest.mark.parametrize(("features", "prompt"), [("I", 45), ("I+T", 20), ("P+I+T", 20)])
@pytest.mark.parametrize("kind", ["align_large", "tune"])
def test_sampled_answers_end_where_a_model_has_no_more_positions(kind, features, prompt):
    """64 positions: the longest question, of which the large model may see features too, with the longest answer is
    past them."""
    method = make_sampling(kind, make_duet(features=features))
    loss = method(with_counts(long_batch(prompt, 40)))
    assert torch.isfinite(loss.total)
