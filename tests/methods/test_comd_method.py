"""CoMD's loss and stages over five classes of transformers: its own loss, what trains, what is saved."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny_comd import KINDS, batch_of, begin, stage, theirs, vlm
from transformers import AutoModelForImageTextToText, LlavaNextConfig, LlavaNextForConditionalGeneration

from limbeck.methods.comd import CoMD
from limbeck.models.lora import Lora
from limbeck.models.vlm import check_head, load_vlm, parts_of, save_vlm
from limbeck.types import IGNORE

CONNECTORS = {
    "llava": {"model.multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_1.bias"},
    "qwen2_vl": "model.visual.merger.",
    "qwen3_vl": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    "smolvlm": "model.connector.",
    "internvl": "model.multi_modal_projector.",
}
LANGUAGE = ("model.language_model.", "model.text_model.", "lm_head.")


def is_connector(kind: str, name: str) -> bool:
    places = CONNECTORS[kind]
    return name in places if isinstance(places, set) else name.startswith(places)


def inputs_of(batch: dict) -> dict:
    return {name: x for name, x in batch.items() if name not in ("labels", "counts", "image_id")}


def step(method: CoMD, batch: dict, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = method(batch).total
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def changed_by(method: CoMD, batch: dict) -> set[str]:
    before = copy.deepcopy(method.student.state_dict())
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        step(method, batch, optimizer)
    return {name for name, x in method.student.named_parameters() if not x.equal(before[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_transformers_own(kind):
    model, processor = vlm(kind)
    batch = batch_of(processor)
    wanted = model(**inputs_of(batch), labels=theirs(batch["labels"])).loss
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    method = begin(CoMD(model, [stage("tune")]))
    loss = method(batch)
    torch.testing.assert_close(loss.total, wanted, rtol=1e-5, atol=1e-6)
    loss.total.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_changes_exactly_what_it_trains(kind):
    model, processor = vlm(kind)
    method = CoMD(model, [stage("connect"), stage("tune")])
    batch = batch_of(processor)
    names = {name for name, _ in model.named_parameters()}
    connector = {name for name in names if is_connector(kind, name)}
    assert changed_by(begin(method), batch) == connector
    changed = changed_by(begin(method, method.plan[1]), batch)
    assert changed == connector | {name for name in names if name.startswith(LANGUAGE)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_student_is_a_plain_folder(kind, tmp_path: Path):
    model, processor = vlm(kind)
    method = begin(CoMD(model, [stage("tune")]))
    changed_by(method, batch_of(processor))
    save_vlm(method.student, None, tmp_path)
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = inputs_of(batch_of(processor))
    method.eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, method.student(**inputs).logits)
        assert torch.equal(load_vlm(tmp_path)(**inputs).logits, loaded(**inputs).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_train_alone_and_are_merged_when_saved(kind, tmp_path: Path):
    model, processor = vlm(kind)
    batch = batch_of(processor)
    with torch.no_grad():
        before = model(**inputs_of(batch)).logits
    method = begin(CoMD(model, [stage("tune")], lora=Lora(rank=4, alpha=8)))
    method.eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs_of(batch)).logits, before), "an adapter starts at nothing"
    method.train()
    changed = changed_by(method, batch)
    assert any("lora_" in name for name in changed)
    assert all("lora_" in name or is_connector(kind, name) for name in changed)
    save_vlm(model, None, tmp_path)
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    method.eval()
    with torch.no_grad():
        after = model(**inputs_of(batch)).logits
        torch.testing.assert_close(loaded(**inputs_of(batch)).logits, after, rtol=1e-4, atol=1e-5)
    assert not after.allclose(before)
    assert any("lora_" in name for name in model.state_dict()), "the student itself keeps its adapters"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", ["connect", "tune"])
def test_checkpointing_gives_the_same_gradients(kind, at):
    model, processor = vlm(kind)
    batch = batch_of(processor)
    method = begin(CoMD(model, [stage(at)]))

    def gradients():
        method.zero_grad()
        method(batch).total.backward()
        return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}

    plain = gradients()
    newer = hasattr(model, "activation_checkpointing_enable")
    (method.activation_checkpointing_enable if newer else method.gradient_checkpointing_enable)()
    method.train()
    calls = []
    hooks = [module.register_forward_pre_hook(lambda *_: calls.append(1)) for module in attentions_of(model)]
    again = gradients()
    for hook in hooks:
        hook.remove()
    assert len(calls) == 2 * len(hooks), "every layer of the language model is computed twice"
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)


def attentions_of(model):
    return [layer.self_attn for layer in model.get_submodule(parts_of(model).language[0]).layers]


def test_rows_without_a_picture_train_too():
    for kind in KINDS:
        model, processor = vlm(kind)
        batch = batch_of(processor, pictures=False)
        assert "pixel_values" not in batch
        wanted = model(**inputs_of(batch), labels=theirs(batch["labels"])).loss
        torch.testing.assert_close(begin(CoMD(model, [stage("tune")]))(batch).total, wanted, rtol=1e-5, atol=1e-6)


def test_a_split_step_is_a_whole_step():
    model, processor = vlm("llava")
    whole = batch_of(processor, answers=(3, 5, 2))
    method = begin(CoMD(model, [stage("tune")]))
    expected = method(whole).total
    tensors = {name: x for name, x in whole.items() if name != "counts"}
    parts = [{name: x[rows] for name, x in tensors.items()} for rows in (slice(0, 1), slice(1, 3))]
    losses = [method({**part, "counts": whole["counts"]}).total for part in parts]
    torch.testing.assert_close(sum(losses), expected)


def test_batches_of_dialogues_leave_out_pictures_that_are_not_there():
    model, processor = vlm("llava")
    batch, blind = batch_of(processor, answers=(3, 5)), batch_of(processor, answers=(4,), pictures=False)
    method = begin(CoMD(model, [stage("tune")]))
    length = batch["input_ids"].shape[1]

    def longer(x, filler):
        return torch.nn.functional.pad(x, (0, length - x.shape[1]), value=filler)

    mixed = {
        "input_ids": torch.cat([batch["input_ids"], longer(blind["input_ids"], 0)]),
        "attention_mask": torch.cat([batch["attention_mask"], longer(blind["attention_mask"], 0)]).bool(),
        "labels": torch.cat([batch["labels"], longer(blind["labels"], IGNORE)]),
        "pixel_values": torch.cat([batch["pixel_values"], torch.zeros(1, 3, 8, 8)]),
        "image_id": torch.arange(3),
        "has_image": torch.tensor([True, True, False]),
        "counts": batch["counts"],
    }
    alone = method({**blind, "counts": batch["counts"]}).total
    torch.testing.assert_close(method(mixed).total, method(batch).total + alone)


def test_what_happens_between_stages_comes_after_each():
    model, _ = vlm("llava")
    seen = []
    method = CoMD(model, [stage("connect"), stage("tune")], between=lambda trained: seen.append(trained.name))
    for each in method.stages():
        seen.append(f"train {each.name}")
    assert seen == ["train connect", "connect", "train tune", "tune"]


def test_checkpoints_leave_out_what_no_stage_has_changed():
    model, _ = vlm("llava")
    method = CoMD(model, [stage("connect"), stage("tune")])
    left_out = {each.name: set(method.teachers()) for each in method.stages()}
    eye, identity = "student.model.vision_tower", "student.model.multi_modal_projector.linear_2"
    assert left_out["connect"] == {eye, identity, "student.model.language_model", "student.lm_head"}
    assert left_out["tune"] == {eye, identity}
    adapted = CoMD(vlm("llava")[0], [stage("tune")], lora=Lora(rank=2))
    kept = {
        name for name in adapted.state_dict() if not name.startswith(tuple(f"{root}." for root in adapted.teachers()))
    }
    assert all("lora_" in name or "linear_1" in name for name in kept)


def test_what_is_frozen_has_no_dropout():
    model, _ = vlm("llava")
    method = begin(CoMD(model, [stage("connect"), stage("tune")]))
    assert not model.model.vision_tower.training
    assert not model.model.language_model.training
    assert model.model.multi_modal_projector.training
    begin(method, method.plan[1])
    assert not model.model.vision_tower.training
    assert model.model.language_model.training


def test_an_unknown_class_wants_to_be_told_what_trains():
    known, _ = vlm("llava")
    values = known.config.to_dict()
    shared = {"vision_config": values["vision_config"], "text_config": values["text_config"]}
    config = LlavaNextConfig(**shared, image_token_index=values["image_token_index"])
    config.vision_config.image_size = 8
    model = LlavaNextForConditionalGeneration(config)
    with pytest.raises(ValueError, match=r"LlavaNextForConditionalGeneration.*'llava_next' is not known.*`trainable`"):
        CoMD(model, [stage("tune")])
    method = begin(CoMD(model, [stage("tune", trainable=("student.model.multi_modal_projector", "student.lm_head"))]))
    trained = {name.split(".")[1] for name, p in method.named_parameters() if p.requires_grad}
    assert trained == {"model", "lm_head"}


def test_logits_that_are_more_than_the_head_are_refused():
    model, _ = vlm("llava")
    model.config.text_config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"final_logit_softcapping is 30\.0"):
        check_head(model)


def test_a_tied_head_is_the_language_models():
    model, _ = vlm("qwen2_vl")
    assert parts_of(model).language == ("model.language_model", "lm_head")
    model.lm_head.weight = model.get_input_embeddings().weight
    assert parts_of(model).language == ("model.language_model",)
