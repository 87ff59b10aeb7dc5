"""DLIP as a whole: which terms there are, what each weight computes, and where no gradient goes."""

import json
import logging
from copy import deepcopy

import pytest
import torch
from tiny_methods import FAMILIES, counted, gradients, make_batch, make_method, make_model
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from limbeck.losses.hidden import effective_rank
from limbeck.method import Stage
from limbeck.methods.dlip import DLIP, DLIPConfig
from limbeck.methods.projection import HiddenMap
from limbeck.methods.weights import expand_weights
from limbeck.models.blip import Blip
from limbeck.models.fusion import FusionConfig, FusionVLM
from limbeck.models.vision import VisionBlock

OBJECTIVES = {
    "blip": {"contrastive", "matching", "language", "answer"},
    "albef": {"contrastive", "matching", "masked_language"},
    "clip": {"contrastive"},
}
PASSES = {
    "blip": {"image", "text", "fused", "question", "decoded", "answer"},
    "albef": {"image", "text", "fused", "question"},
    "clip": {"image", "text"},
}


def distillation_terms(family):
    passes = PASSES[family]
    attention = {f"attention/{name}/self" for name in passes}
    attention |= {f"attention/{name}/cross" for name in passes - {"image", "text"}}
    return {f"hidden/{name}" for name in passes} | attention


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_a_step_with_all_its_terms(family, teacher):
    method = make_method(family, teacher=teacher)
    loss = method(counted(make_batch(8)))
    wanted = OBJECTIVES[family] | (distillation_terms(family) if teacher else set())
    if family == "albef":
        wanted -= {"hidden/question", "attention/question/self", "attention/question/cross"}
    assert set(method.terms()) == set(loss.terms) == set(loss.weights) == wanted
    assert all(term.ndim == 0 and torch.isfinite(term) for term in loss.terms.values())
    loss.total.backward()
    for name, parameter in method.named_parameters():
        if name.startswith(("teacher.", "objective.")):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
    student = {name for name, p in method.student.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in student} >= {"vision", "text", "temperature"}


def test_a_gradient_never_reaches_a_teacher_even_one_that_was_left_trainable():
    method = make_method("blip")
    method.teacher.requires_grad_(True)
    method.objective.momentum.requires_grad_(True)
    method(counted(make_batch(4))).total.backward()
    assert all(p.grad is None for p in [*method.teacher.parameters(), *method.objective.momentum.parameters()])


def test_a_student_of_another_family_learns_from_the_passes_that_both_have():
    stage = Stage(name="pretrain", trainable=(), weights={})
    method = DLIP(DLIPConfig(), make_model("clip", 0), make_model("blip", 1), [stage])
    assert set(method.terms()) == {"contrastive"} | distillation_terms("clip")


def test_an_unknown_term_names_the_stage_the_nearest_term_and_the_choices():
    with pytest.raises(ValueError, match=r"stages\.0\.weights.*'languge'.*'language'.*\(.*fused/cross.*hidden"):
        make_method(weights={"languge": 1.0})


PARTS = {
    "captioning": {"encoder": False, "heads": False, "decoder": "separate"},
    "retrieval": {"decoder": "none"},
    "vqa": {"heads": False, "decoder": "none", "answer_decoder": "separate"},
}
"""What one published BLIP checkpoint holds."""
HELD = {"captioning": {"image", "decoded"}, "retrieval": {"image", "text", "fused"}}
HELD["vqa"] = HELD["retrieval"] | {"question", "answer"}
CHECKPOINT_TERMS = {"captioning": {"language"}, "retrieval": {"contrastive", "matching"}, "vqa": {"answer"}}


def checkpoint(task):
    return Blip(FusionConfig.model_validate(make_model("blip", 1).config.model_dump() | PARTS[task]))


def of_passes(passes):
    terms = {f"hidden/{name}" for name in passes} | {f"attention/{name}/self" for name in passes}
    return terms | {f"attention/{name}/cross" for name in passes - {"image", "text"}}


@pytest.mark.parametrize("task", PARTS)
def test_one_checkpoint_teaches_and_learns_what_it_has_parts_for(task):
    stage = Stage(name="pretrain", trainable=(), weights={})
    for student, teacher in ((make_model("blip", 0), checkpoint(task)), (checkpoint(task), make_model("blip", 0))):
        method = DLIP(DLIPConfig(), student, teacher, [stage])
        own = CHECKPOINT_TERMS[task] if student.config.decoder != "tied" else OBJECTIVES["blip"]
        assert set(method.terms()) == own | of_passes(HELD[task])
        method.begin_stage(stage, 10)
        method.begin_step(0)
        loss = method(counted(make_batch(4)))
        assert set(loss.terms) == set(method.terms())
        loss.total.backward()


@pytest.mark.parametrize(
    ("task", "weights", "config", "message"),
    [
        (
            "captioning",
            {"hidden/text": 1.0},
            {},
            r"stages\.0\.weights: hidden/text: the teacher \(blip\) has no text enc",
        ),
        ("retrieval", {"hidden": 1, "attention/decoded": 1}, {}, r"captioning checkpoint as another folder in teacher"),
        (
            "retrieval",
            {},
            {"hidden": {"sites": ["vl_d"]}},
            r"dlip\.hidden\.sites: vl_d: the teacher .* caption decoder",
        ),
        ("captioning", {}, {"attention": {"sites": ["text"]}}, r"dlip\.attention\.sites: text: .* no text encoder"),
        (
            "vqa",
            {},
            {"logits": {"sites": ["matching"]}},
            r"dlip\.logits\.sites: matching: .* and matching heads: a retr",
        ),
    ],
)
def test_a_weight_or_site_that_a_checkpoint_cannot_give_is_refused(task, weights, config, message):
    stage = Stage(name="pretrain", trainable=(), weights=weights)
    with pytest.raises(ValueError, match=message):
        DLIP(DLIPConfig.model_validate_json(json.dumps(config)), make_model("blip", 0), checkpoint(task), [stage])


def test_a_tied_decoder_answers_only_between_towers_of_one_width():
    narrow = make_model("blip", 0).config.model_dump()
    student = Blip(FusionConfig.model_validate(narrow | {"vision": narrow["vision"] | {"width": 16}}))
    stage = Stage(name="pretrain", trainable=(), weights={})
    terms = DLIP(DLIPConfig(), student, make_model("blip", 1), [stage]).terms()
    assert "language" in terms
    assert not [name for name in terms if "answer" in name or "question" in name]
    stage = Stage(name="pretrain", trainable=(), weights={"answer": 1.0})
    with pytest.raises(ValueError, match=r"stages\.0\.weights: answer: .*student\.answer_decoder: separate"):
        DLIP(DLIPConfig(), student, None, [stage])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_tells_which_of_its_terms_read_captions(family):
    method = make_method(family, logits={"sites": ("contrastive",)})
    free = {"answer", "hidden/image", "hidden/question", "hidden/answer"}
    free |= {f"attention/{name}/{kind}" for name in ("image", "question", "answer") for kind in ("self", "cross")}
    (stage,) = method.stages()
    assert set(method.caption_terms(stage)) == set(method.terms()) - free
    some = Stage(name="some", trainable=(), weights={"hidden": 1.0, "hidden/text": 0.0})
    assert set(method.caption_terms(some)) == {"hidden/fused", "hidden/decoded"} & set(method.terms())


def test_groups_expand_and_the_longer_name_wins():
    terms = ("contrastive", "hidden/image", "hidden/text", "attention/fused/self", "attention/fused/cross")
    weights = expand_weights({"hidden": 2.0, "attention/fused": 3.0, "attention/fused/cross": 0.5}, terms)
    assert weights == {
        "contrastive": 0.0,
        "hidden/image": 2.0,
        "hidden/text": 2.0,
        "attention/fused/self": 3.0,
        "attention/fused/cross": 0.5,
    }
    assert expand_weights({}, terms) == dict.fromkeys(terms, 1.0)
    with pytest.raises(ValueError, match="'hid'"):
        expand_weights({"hid": 1.0}, terms)


def test_the_total_is_the_weighted_sum():
    loss = make_method(weights={"contrastive": 0.5, "language": 2.0, "hidden/image": 3.0})(counted(make_batch(4)))
    assert set(loss.terms) == {"contrastive", "language", "hidden/image"}
    wanted = sum(loss.weights[name] * term.item() for name, term in loss.terms.items())
    assert loss.total.item() == pytest.approx(wanted, rel=1e-6)


def calls(monkeypatch):
    """Count the passes that models make, by name; the teacher's too."""
    seen = []
    for name in ("encode_image", "encode_text", "fuse", "decode", "answer"):
        original = getattr(FusionVLM, name)

        def spy(self, *args, _name=name, _original=original, **values):
            seen.append(_name)
            return _original(self, *args, **values)

        monkeypatch.setattr(FusionVLM, name, spy)
    return seen


@pytest.mark.parametrize(
    ("weights", "passes"),
    [
        ({"language": 1.0, "contrastive": 0.0, "hidden": 0.0}, ["decode", "encode_image"]),
        ({"hidden/image": 1.0}, ["encode_image", "encode_image"]),
        ({"answer": 1.0}, ["answer", "encode_image", "fuse"]),
        ({"attention/decoded": 1.0}, ["decode", "decode", "encode_image", "encode_image"]),
    ],
)
def test_what_has_no_weight_is_not_computed(monkeypatch, weights, passes):
    method = make_method(weights=weights)
    seen = calls(monkeypatch)
    loss = method(counted(make_batch(4)))
    assert sorted(seen) == passes
    assert all(loss.weights.values())


def test_a_batch_without_questions_has_no_answer_terms():
    batch = make_batch(4)
    for name in ("question_ids", "question_mask", "question_image"):
        batch.pop(name)
    for name in ("answer_ids", "answer_mask", "answer_question", "answer_weight"):
        batch.pop(name)
    loss = make_method()(counted(batch))
    assert {"language", "hidden/decoded"} <= set(loss.terms)
    assert not {name for name in loss.terms if "answer" in name or "question" in name}


def test_a_teacher_like_the_student_leaves_nothing_to_learn():
    stage = Stage(name="pretrain", trainable=(), weights={"hidden": 1.0, "attention": 1.0})
    method = DLIP(DLIPConfig(), make_model("blip", 3), make_model("blip", 3), [stage])
    with torch.no_grad():
        for projection in method.projections.values():
            projection.student.weight.copy_(torch.eye(32))
    method.train()
    method.begin_stage(stage, 10)
    method.begin_step(0)
    loss = method(counted(make_batch(6)))
    assert set(loss.terms) == distillation_terms("blip")
    for name, term in loss.terms.items():
        assert abs(term.item()) < 2e-6, name


def test_hard_negatives_reach_the_teacher_only_where_asked(monkeypatch):
    weights = {"matching": 1.0, "hidden/fused": 1.0}
    rows = {}
    for wanted in (False, True):
        method = make_method(weights=weights, kd_negatives=wanted)
        original = method.teacher.fuse

        def spy(memory, ids, mask, _original=original, _wanted=wanted, **values):
            rows[_wanted] = len(ids)
            return _original(memory, ids, mask, **values)

        monkeypatch.setattr(method.teacher, "fuse", spy)
        method(counted(make_batch(4)))
    assert rows == {False: 4, True: 12}


def test_a_fused_term_is_a_mean_over_negatives_too():
    """Pairs that are all alike have negatives like themselves, so the mean is the same with and without them."""
    one = make_batch(1)
    names = ("pixel_values", "input_ids", "attention_mask")
    batch = {**make_batch(4), **{name: one[name].expand(4, *one[name].shape[1:]) for name in names}}
    weights = {"matching": 1.0, "hidden/fused": 1.0, "attention/fused": 1.0}
    alone, both = (make_method(weights=weights, kd_negatives=seen)(counted(batch)).terms for seen in (False, True))
    for name in ("hidden/fused", "attention/fused/self", "attention/fused/cross"):
        assert alone[name].item() == pytest.approx(both[name].item(), rel=1e-5), name


def test_negatives_for_the_teacher_must_be_of_this_process():
    with pytest.raises(ValueError, match=r"kd_negatives.*negatives: rank"):
        DLIPConfig.model_validate({"kd_negatives": True, "vlp": {"contrastive": {"negatives": "all"}}})


@pytest.mark.parametrize("kind", ["student", "paper_frozen", "paper"])
def test_hidden_maps_multiply_in_full_precision_under_autocast(kind):
    torch.manual_seed(0)
    mapping = HiddenMap(32, 48, kind)
    teacher, student = torch.randn(2, 5, 48), torch.randn(2, 5, 32)
    wanted = mapping(teacher, student)
    with torch.autocast("cpu", torch.bfloat16):
        found = mapping(teacher, student)
    for full, half in zip(wanted, found, strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(full, half)


@pytest.mark.parametrize("kind", ["student", "paper_frozen", "paper"])
def test_hidden_maps_bring_both_to_one_width(kind):
    torch.manual_seed(0)
    mapping = HiddenMap(32, 48, kind)
    teacher, student = torch.randn(2, 5, 48), torch.randn(2, 5, 32)
    taught, learned = mapping(teacher, student)
    learnt = {name for name, p in mapping.named_parameters() if p.requires_grad}
    if kind == "student":
        assert torch.equal(taught, teacher)
        assert learned.shape == teacher.shape
        assert learnt == {"student.weight"}
    elif kind == "paper_frozen":
        assert torch.allclose(mapping.fixed @ mapping.fixed.T, torch.eye(32), atol=1e-5)
        assert torch.allclose(taught, teacher @ mapping.fixed.T)
        assert learnt == {"student.weight"}
    else:
        assert taught.shape == learned.shape == student.shape
        assert learnt == {"student.weight", "teacher.weight"}


def test_both_maps_learnt_log_their_rank_and_warn_when_it_falls(caplog):
    method = make_method(weights={"hidden/image": 1.0}, hidden={"hr_map": "paper"})
    state = method(counted(make_batch(8))).state
    assert state["effective_rank/image"] > 8
    assert not caplog.records
    with torch.no_grad():
        method.projections["img"].teacher.weight[2:] = 0
    with caplog.at_level(logging.WARNING):
        state = method(counted(make_batch(8))).state
    assert state["effective_rank/image"] < 2.5
    assert "hidden/image" in caplog.text
    method.begin_step(1)
    assert "effective_rank/image" not in method(counted(make_batch(8))).state


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", [{}, {"contrastive": 1.0, "hidden": 1.0}])
def test_checkpointing_gives_the_same_losses_and_gradients(family, weights):
    method, batch = make_method(family, weights=weights, dropout=0.2), counted(make_batch(6))
    queues = deepcopy(method.objective.state_dict())

    def step():
        torch.manual_seed(5)
        method.objective.load_state_dict(queues)
        method.zero_grad()
        loss = method(batch)
        loss.total.backward()
        return {name: term.detach() for name, term in loss.terms.items()}, gradients(method)

    terms, plain = step()
    method.activation_checkpointing_enable({"use_reentrant": False})
    calls = []
    layers = [module for module in method.student.modules() if isinstance(module, VisionBlock | CLIPEncoderLayer)]
    hooks = [part.register_forward_pre_hook(lambda *_: calls.append(1)) for each in layers for part in each.children()]
    again, found = step()
    for hook in hooks:
        hook.remove()
    assert len(calls) >= 2 * len(layers), "layers are computed twice"
    assert terms.keys() == again.keys()
    assert plain.keys() == found.keys()
    for name, term in terms.items():
        torch.testing.assert_close(again[name], term)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_keeps_less(family):
    """What autograd keeps of a batch beside weights, each storage once."""
    method, batch = make_method(family, dropout=0.1), counted(make_batch(8))

    def kept():
        seen = {x.untyped_storage().data_ptr(): 0 for x in (*method.parameters(), *method.buffers())}

        def pack(tensor):
            seen.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = method(batch)
        assert torch.isfinite(loss.total)
        return sum(seen.values())

    before = kept()
    method.gradient_checkpointing_enable()
    assert kept() < 0.7 * before


def test_checkpointing_that_would_lose_a_gradient_or_is_not_there_is_refused():
    with pytest.raises(ValueError, match="use_reentrant"):
        make_method().activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="offload"):
        make_method().activation_checkpointing_enable(offload=True)


def test_only_every_nth_layer_is_computed_again_where_so_asked():
    method = make_method()
    method.activation_checkpointing_enable(every_n_layers=2)
    assert [layer.gradient_checkpointing for layer in method.student.vision.blocks] == [True, False]
    assert not any(layer.gradient_checkpointing for layer in method.teacher.vision.blocks)


def test_effective_rank_counts_directions():
    torch.manual_seed(0)
    assert float(effective_rank(torch.randn(4000, 3) @ torch.eye(3, 10))) == pytest.approx(3, abs=0.01)


def test_unequal_heads_are_left_out_of_the_image_tower_by_skip_vision():
    terms = make_method(attention={"head_map": "skip_vision", "sites": ("img",)}).terms()
    assert not [name for name in terms if name.startswith("attention")]


@pytest.mark.parametrize("head_map", ["group_mean", "mean", "relation"])
def test_every_head_map_takes_unequal_heads(head_map):
    loss = make_method(weights={"attention": 1.0}, attention={"head_map": head_map})(counted(make_batch(4)))
    assert all(float(term.detach()) > 0 for term in loss.terms.values())


def test_a_bfloat16_teacher_teaches_a_float32_student():
    method = make_method()
    reference = method(counted(make_batch(4))).terms
    method.teacher.to(torch.bfloat16)
    terms = method(counted(make_batch(4))).terms
    for name in ("hidden/image", "hidden/decoded", "hidden/answer"):
        assert terms[name].dtype == torch.float32
        assert terms[name].item() == pytest.approx(reference[name].item(), rel=0.02)


def test_a_batch_without_a_question_is_no_error_where_only_answers_count():
    method = make_method("blip", weights={"answer": 1.0})
    batch = make_batch(4)
    for name in ("question_ids", "question_mask", "question_image", "answer_ids", "answer_mask", "answer_question"):
        batch[name] = batch[name][:0]
    batch["answer_weight"] = batch["answer_weight"][:0]
    loss = method(counted(batch))
    loss.total.backward()
    assert loss.terms.keys() == {"answer"}
    assert loss.total.item() == 0


def test_a_teacher_put_together_of_two_checkpoints_can_see_negatives_too():
    student, teacher = make_model("blip", 0), make_model("blip", 1)
    parts = teacher.config.model_dump() | {"decoder": "separate", "decoder_vision": True}
    teacher = Blip(FusionConfig.model_validate(parts))
    stage = Stage(name="pretrain", trainable=(), weights={"matching": 1.0, "hidden": 1.0})
    method = DLIP(DLIPConfig(kd_negatives=True), student, teacher, [stage])
    method.begin_stage(stage, 10)
    loss = method(counted(make_batch(4)))
    assert {"hidden/fused", "hidden/decoded"} <= set(loss.terms)
    assert torch.isfinite(loss.total)
