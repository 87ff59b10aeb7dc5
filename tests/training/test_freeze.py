import pytest
from torch import nn

from limbeck.training.freeze import freeze


@pytest.fixture
def model():
    return nn.ModuleDict(
        {"student": nn.ModuleDict({"vision": nn.Linear(2, 2), "text": nn.Linear(2, 2)}), "teacher": nn.Linear(2, 2)}
    )


def test_exactly_the_matched_parameters_train(model):
    assert freeze(model, ("student.vision",)) == ["student.vision.weight", "student.vision.bias"]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "student.vision.weight",
        "student.vision.bias",
    }


def test_a_glob_never_reaches_what_is_frozen(model):
    freeze(model, ("*",), frozen=("teacher",))
    assert not any(p.requires_grad for p in model["teacher"].parameters())
    assert all(p.requires_grad for p in model["student"].parameters())


def test_a_glob_that_matches_nothing_names_the_nearest_module(model):
    with pytest.raises(ValueError, match=r"student\.vison.*student\.vision"):
        freeze(model, ("student.vison",))
