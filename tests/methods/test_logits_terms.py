"""Soft targets from the teacher's predictions: which terms there are, by hand, and where no gradient goes."""

from copy import deepcopy

import pytest
import torch
from tiny_methods import counted, make_batch, make_method, make_model, rows_of
from torch.nn import functional

from limbeck.method import Stage
from limbeck.methods import logits as logits_module
from limbeck.methods.dlip import DLIP, DLIPConfig
from limbeck.methods.logits import LogitsConfig
from limbeck.types import Signals

SITES = ("contrastive", "matching", "language", "answer")


FAMILY_SITES = {"blip": SITES, "albef": SITES[:2], "clip": SITES[:1]}


def soft_method(family="blip", student=None, teacher=None, temperature=1.0):
    """A method with nothing but soft targets."""
    logits = LogitsConfig(sites=FAMILY_SITES[family], temperature=temperature)
    config = DLIPConfig(kd_negatives=True, logits=logits)
    student = student or make_model(family, 0)
    teacher = teacher or make_model(family, 1)
    stage = Stage(name="pretrain", trainable=(), weights={"logits": 1.0})
    method = DLIP(config, student, teacher, [stage])
    method.begin_stage(stage, 10)
    return method.eval()


def test_without_the_setting_there_is_no_such_term():
    assert not [name for name in make_method("blip").terms() if name.startswith("logits/")]


@pytest.mark.parametrize(("family", "sites"), FAMILY_SITES.items())
def test_a_family_has_the_terms_of_its_passes(family, sites):
    loss = soft_method(family)(counted(make_batch(6)))
    assert set(loss.terms) == {f"logits/{name}" for name in sites}
    assert all(term.item() > 0 for term in loss.terms.values())


def test_a_student_that_is_its_teacher_loses_nothing():
    student = make_model("blip", 0)
    loss = soft_method(student=student, teacher=deepcopy(student))(counted(make_batch(6)))
    assert loss.total.item() == pytest.approx(0, abs=1e-5)


def test_a_gradient_reaches_the_student_alone():
    method = soft_method()
    method.teacher.requires_grad_(True)
    method(counted(make_batch(4))).total.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in method.student.parameters())


def test_the_language_term_is_the_mean_divergence_of_predicted_words():
    method, batch = soft_method(temperature=2.0), counted(make_batch(5))
    with torch.no_grad():
        outputs = []
        for model in (method.student, method.teacher):
            memory = model.image_memory(model.encode_image(batch["pixel_values"]))
            outputs.append(
                (model.decode(memory, batch["input_ids"], batch["attention_mask"]).output / 2).log_softmax(-1)
            )
        student, teacher = outputs
        divergence = (teacher.exp() * (teacher - student)).sum(-1)[:, :-1]
        expected = divergence[batch["attention_mask"][:, 1:]].mean()
        found = method(batch).terms["logits/language"]
    torch.testing.assert_close(found, expected)


def test_the_contrastive_term_compares_similarities_both_ways():
    method, batch = soft_method("clip"), counted(make_batch(5))
    with torch.no_grad():
        rows = []
        for model in (method.student, method.teacher):
            images = model.encode_image(batch["pixel_values"]).output
            texts = model.encode_text(batch["input_ids"], batch["attention_mask"]).output
            logits = images @ texts.T / model.temperature
            rows.append((logits.log_softmax(1), logits.T.log_softmax(1)))
        (to_text, to_image), (taught_text, taught_image) = rows
        expected = [
            (taught.exp() * (taught - own)).sum(1).mean()
            for own, taught in ((to_text, taught_text), (to_image, taught_image))
        ]
        found = method(batch).terms["logits/contrastive"]
    torch.testing.assert_close(found, sum(expected) / 2)


def test_similarities_are_in_full_precision_under_autocast():
    torch.manual_seed(0)
    method = soft_method("clip")
    signals = {
        name: Signals(output=functional.normalize(torch.randn(6, 16), dim=1), hidden=torch.zeros(6, 1, 1))
        for name in ("image", "text")
    }
    full = logits_module._similarities(method.student, signals)
    with torch.autocast("cpu", torch.bfloat16):
        half = logits_module._similarities(method.student, signals)
    for one, other in zip(full, half, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


def test_split_into_micro_batches_the_word_terms_are_the_same():
    method, whole = soft_method(), make_batch(6)
    parts = [rows_of(whole, 0, 2), rows_of(whole, 2, 6)]
    together = counted(whole)
    with torch.no_grad():
        expected = method(together).terms
        pieces = [method({**part, "counts": together["counts"]}).terms for part in parts]
    for name in ("logits/language", "logits/answer"):
        torch.testing.assert_close(sum(piece[name] for piece in pieces), expected[name])
