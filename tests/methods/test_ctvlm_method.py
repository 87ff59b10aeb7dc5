"""CTVLM: what each stage trains, what its losses are, and which way its teaching goes."""

import pytest
import torch
from tiny_ctvlm import (
    EOS,
    KINDS,
    PAD,
    make_conversations,
    make_ctvlm,
    make_duet,
    make_stage,
    slice_of,
    with_counts,
)
from torch.nn import functional

from limbeck.methods.ctvlm import CTVLM
from limbeck.methods.negatives import drawn_negatives
from limbeck.methods.sequences import to_left, to_right, without_pictures
from limbeck.models.duet_cross import repeated_layers
from limbeck.training.freeze import freeze
from limbeck.types import IGNORE

TRAINED = {
    "language": {"duet.large"},
    "align_tiny": {"duet.tiny.connector", "duet.tiny.project_in", "duet.tiny.project_out", "duet.tiny.body"}
    | {"duet.tiny.cross", "heads"},
    "align_large": {"duet.connector"},
    "tune": {"duet.tiny.connector", "duet.tiny.project_in", "duet.tiny.project_out", "duet.tiny.body"}
    | {"duet.tiny.cross", "duet.connector", "duet.large"},
}
"""The table of stages, by module; the eye and the frozen table stand in none."""


def batch_for(kind, size=6, seed=0):
    return with_counts(make_conversations(size, asked=kind == "tune", seed=seed))


def module_of(name):
    parts = name.split(".")
    return ".".join(parts[: 3 if name.startswith("duet.tiny.") else 2 if parts[0] == "duet" else 1])


def changed_by(method, batch):
    """The modules whose parameters one step of plain gradient descent changes."""
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    method(batch).total.backward()
    optimizer = torch.optim.SGD([parameter for parameter in method.parameters() if parameter.requires_grad], lr=0.1)
    optimizer.step()
    return {module_of(name) for name, parameter in method.named_parameters() if not parameter.equal(before[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_changes_what_its_row_of_the_table_says_and_nothing_else(kind):
    method = make_ctvlm(make_stage(kind))
    assert changed_by(method, batch_for(kind)) == TRAINED[kind]


def test_a_resized_table_trains_with_the_tiny_model():
    method = make_ctvlm(make_stage("tune"), duet=make_duet("resized"))
    wanted = TRAINED["tune"] - {"duet.tiny.project_in", "duet.tiny.project_out"} | {"duet.tiny.table"}
    assert changed_by(method, batch_for("tune")) == wanted


def test_the_tiny_model_alone_trains_nothing_of_the_large_one():
    method = make_ctvlm(make_stage("tune", models="tiny", kd="none"))
    batch = batch_for("tune")
    assert set(method(batch).terms) == {"language/tiny"}
    assert changed_by(method, batch) == TRAINED["tune"] - {"duet.connector", "duet.large"}


def predictions(method, batch):
    """Both models' logits at the answers, by their plain forward passes."""
    duet = method.duet
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    hidden = duet.tiny.read(ids, mask, duet.tiny.see(batch["pixel_values"]))
    tiny = duet.tiny.head_input(hidden[labels != IGNORE]) @ duet.tiny.head_weight.T
    embeddings, large_mask, large_labels = duet.large_inputs(ids, mask, hidden, labels)
    large = duet.large_hidden(embeddings, large_mask)[large_labels != IGNORE] @ duet.large_head_weight.T
    return tiny.log_softmax(-1), large.log_softmax(-1), labels[labels != IGNORE]


@pytest.mark.parametrize(("kind", "kd"), [("align_large", "forward"), ("tune", "reverse"), ("tune", "forward")])
def test_the_loss_is_the_papers_mixture(kind, kd):
    method, batch = make_ctvlm(make_stage(kind, kd=kd, kd_weight=0.3)), batch_for(kind)
    loss = method(batch)
    with torch.no_grad():
        tiny, large, targets = predictions(method, batch)
    student, teacher = (large, tiny) if kind == "align_large" else (tiny, large)
    first, second = (teacher, student) if kd == "forward" else (student, teacher)
    wanted = {
        "language/tiny": functional.nll_loss(tiny, targets),
        "language/large": functional.nll_loss(large, targets),
        f"{kd}_kl": (first.exp() * (first - second)).sum(-1).mean(),
    }
    assert loss.terms.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(loss.terms[name].detach(), value, rtol=1e-4, atol=1e-5)
    total = 0.7 * (wanted["language/tiny"] + wanted["language/large"]) + 0.3 * wanted[f"{kd}_kl"]
    torch.testing.assert_close(loss.total.detach(), total, rtol=1e-4, atol=1e-5)


def test_without_a_divergence_both_models_count_in_full():
    loss = make_ctvlm(make_stage("tune", kd="none"))(batch_for("tune"))
    assert dict(loss.weights) == {"language/tiny": 1.0, "language/large": 1.0}


def test_the_divergence_teaches_the_tiny_model_alone_in_tuning():
    method = make_ctvlm(make_stage("tune"))
    method(batch_for("tune")).terms["reverse_kl"].backward()
    reached = {module_of(name) for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert {name for name in reached if not name.startswith("duet.tiny")} <= {"duet.connector", "duet.large"}
    large = [p.grad for name, p in method.named_parameters() if name.startswith(("duet.large", "duet.connector"))]
    assert not any(grad is not None and grad.any() for grad in large)
    assert all(parameter.grad.any() for parameter in method.duet.tiny.body.parameters() if parameter.ndim > 1)


def test_the_large_models_loss_reaches_the_tiny_model_through_its_features():
    method = make_ctvlm(make_stage("tune"))
    method(batch_for("tune")).terms["language/large"].backward()
    assert all(parameter.grad.any() for parameter in method.duet.tiny.body.parameters() if parameter.ndim > 1)


def test_aligning_is_contrast_matching_and_generation():
    method = make_ctvlm(make_stage("align_tiny"))
    loss = method(batch_for("align_tiny"))
    assert set(loss.terms) == {"contrastive", "matching", "language/tiny"}
    batch = batch_for("align_tiny")
    with torch.no_grad():
        tiny, _, targets = predictions(method, batch)
    written = loss.terms["language/tiny"].detach()
    torch.testing.assert_close(written, functional.nll_loss(tiny, targets), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["language", "align_large", "tune"])
def test_a_split_step_is_a_whole_step(kind):
    method = make_ctvlm(make_stage(kind))
    whole = make_conversations(6, asked=kind == "tune")
    expected = method(with_counts(whole)).terms
    parts = [method(with_counts(slice_of(whole, *rows), whole)).terms for rows in ((0, 2), (2, 6))]
    for name, value in expected.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_change_no_gradient(kind):
    method = make_ctvlm(make_stage(kind))
    batch = batch_for(kind)
    method(batch).total.backward()
    expected = {name: x.grad.clone() for name, x in method.named_parameters() if x.grad is not None}
    method.zero_grad()
    method.gradient_checkpointing_enable({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in method.modules())
    method(batch).total.backward()
    found = {name: x.grad for name, x in method.named_parameters() if x.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("large", ["llama", "opt"])
def test_the_frozen_large_models_layers_are_computed_again_without_dropout(large):
    method = make_ctvlm(make_stage("align_large"), duet=make_duet(large=large, dropout=0.5))
    batch, expected = batch_for("align_large"), {}
    for checkpointed in (False, True):
        if checkpointed:
            method.gradient_checkpointing_enable()
            method.train()
        layers, passes = repeated_layers(method.duet.large, 2), []
        hooks = [
            next(layer.children()).register_forward_hook(lambda *_, number=number, passes=passes: passes.append(number))
            for number, layer in enumerate(layers)
        ]
        method.zero_grad()
        method(batch).total.backward()
        found = {name: x.grad for name, x in method.named_parameters() if x.grad is not None}
        assert sorted(passes) == ([0, 0, 1, 1] if checkpointed else [0, 1])
        if checkpointed:
            assert found.keys() == expected.keys()
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
        expected = found
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", ["align_large", "tune"])
def test_on_policy_answers_are_the_students_own(kind):
    method = make_ctvlm(make_stage(kind, on_policy=True, stop_token_id=EOS, pad_token_id=PAD))
    torch.manual_seed(3)
    batch = batch_for(kind)
    loss = method(batch)
    loss.total.backward()
    torch.manual_seed(3)
    ids, mask, labels = method._sample(batch, method.duet.tiny.see(batch["pixel_values"]))
    assert mask.equal(mask.sort(dim=1, descending=True).values)
    for row in range(len(ids)):
        answer = labels[row][labels[row] != IGNORE]
        first = int((labels[row] != IGNORE).int().argmax())
        assert ids[row, first + 1 : first + 1 + len(answer)].equal(answer)
        asked = int((batch["labels"][row] != IGNORE).int().argmax())
        assert ids[row, : first + 1].equal(batch["input_ids"][row, : asked + 1])
    assert torch.isfinite(loss.total)


def test_rows_move_to_either_side():
    ids, kept = torch.tensor([[5, 6, 7, 8], [9, 4, 3, 3]]), torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]]).bool()
    left, mask = to_left(ids, kept, PAD)
    assert left.tolist() == [[5, 6, 7], [PAD, PAD, 4]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    right, mask, labels = to_right(ids, kept, ids + 10, PAD)
    assert right.tolist() == [[5, 6, 7], [4, PAD, PAD]]
    assert labels.tolist() == [[15, 16, 17], [14, IGNORE, IGNORE]]


def test_checkpoints_leave_out_what_no_stage_has_changed_yet():
    method = CTVLM(make_duet(), 60, [make_stage(kind) for kind in KINDS])
    left_out = {stage.name: set(method.teachers()) for stage in method.stages()}
    always = {"duet.tiny.eye", "duet.tiny.table"}
    assert left_out == {
        "language": always | {"duet.connector", "heads"},
        "align_tiny": always | {"duet.connector"},
        "align_large": always | {"heads"},
        "tune": always | {"heads"},
    }


def test_the_tiny_table_follows_the_language_stage():
    method = CTVLM(make_duet(), 60, [make_stage("language"), make_stage("align_tiny")])
    stages = method.stages()
    stage = next(stages)
    freeze(method, stage.trainable, method.teachers())
    with torch.no_grad():
        method.duet.large.get_input_embeddings().weight += 1
    next(stages)
    assert method.duet.tiny.table.weight.equal(method.duet.large.get_input_embeddings().weight)


@pytest.mark.parametrize("same", [(0,), (0, 0, 0), (0, 0, 1)])
def test_matching_leaves_out_wrong_pairs_where_the_batch_has_no_other_picture(same):
    method, batch = make_ctvlm(make_stage("align_tiny")), batch_for("align_tiny", len(same))
    batch["image_id"] = torch.tensor(same)
    batch = with_counts({name: value for name, value in batch.items() if name != "counts"})
    judged = []
    method.heads.match.register_forward_hook(lambda _module, _given, logits: judged.append(logits.detach()))
    term = method(batch).terms["matching"].detach()
    [logits] = judged
    true, wrong = -logits[: len(same)].log_softmax(-1)[:, 1], -logits[len(same) :].log_softmax(-1)[:, 0]
    expected = true.sum() + (wrong.sum() if len(set(same)) > 1 else 0)
    torch.testing.assert_close(term, expected / (3 * len(same)), rtol=1e-4, atol=1e-6)


def test_the_hardest_wrong_text_is_drawn_even_where_the_right_one_is_far_likelier():
    cosines = torch.tensor([[1.0, 0.5, 0.1, 0.0]]).expand(1000, 4)
    same = torch.tensor([[True, False, False, False]]).expand(1000, 4)
    drawn = drawn_negatives(cosines / 0.03, same, torch.arange(1000) / 1000)
    assert drawn.eq(1).all()


def test_wrong_texts_are_drawn_by_their_softmax_and_never_of_the_same_picture():
    logits = torch.tensor([[2.0, 5.0, 1.0, 0.0, 9.0]]).expand(10_000, 5)
    same = torch.tensor([[False, True, False, False, True]]).expand(10_000, 5)
    drawn = drawn_negatives(logits, same, torch.arange(10_000) / 10_000)
    expected = torch.tensor([2.0, -torch.inf, 1.0, 0.0, -torch.inf]).softmax(0)
    torch.testing.assert_close(drawn.bincount(minlength=5) / 10_000, expected, rtol=0, atol=2e-4)
    assert drawn_negatives(logits, same, torch.ones(10_000)).eq(3).all(), "a draw that was rounded up to 1"


def test_matching_compares_in_float32_under_autocast(monkeypatch):
    method, batch, found = make_ctvlm(make_stage("align_tiny")), batch_for("align_tiny"), []
    monkeypatch.setattr(
        "limbeck.methods.ctvlm.drawn_negatives",
        lambda logits, same, draws: (found.append(logits), drawn_negatives(logits, same, draws))[1],
    )
    with torch.autocast("cpu", torch.bfloat16):
        method(batch)
    rounded = [torch.equal(logits * 0.07, (logits * 0.07).bfloat16().float()) for logits in found]
    assert [logits.dtype for logits in found] == [torch.float32] * 2
    assert rounded == [False, False]


def test_contrast_is_smoothed_cross_entropy_both_ways():
    method, batch = make_ctvlm(make_stage("align_tiny")), batch_for("align_tiny")
    with torch.no_grad():
        tiny, heads = method.duet.tiny, method.heads
        ids, mask = without_pictures(batch, method.duet.image_token_id)
        pictures = heads.image(tiny.see(batch["pixel_values"]).mean(1))
        texts = heads.text(tiny.read(ids, mask)[torch.arange(6), mask.sum(1) - 1])
        logits = functional.normalize(pictures, dim=1) @ functional.normalize(texts, dim=1).T / heads.temperature
        right = torch.arange(6)
        both = [functional.cross_entropy(way, right, label_smoothing=0.1) for way in (logits, logits.T)]
    torch.testing.assert_close(method(batch).terms["contrastive"].detach(), sum(both) / 2, rtol=1e-4, atol=1e-5)
