"""CLIP's towers: padding, what is captured, gradients."""

import pytest
import torch
from pydantic import ValidationError
from tiny_models import stir, text, vision
from torch import Tensor

from limbeck.models.clip import ClipConfig, DualEncoder


@pytest.fixture
def model() -> DualEncoder:
    made = stir(DualEncoder(ClipConfig(vision=vision(32), text=text(dropout=0), embedding=16)))
    assert isinstance(made, DualEncoder)
    return made


@torch.no_grad()
def test_padding_changes_nothing(model: DualEncoder, ids: Tensor, mask: Tensor) -> None:
    padded = torch.cat((ids, torch.full((3, 2), 3)), dim=1)
    longer = torch.cat((mask, torch.zeros(3, 2, dtype=torch.bool)), dim=1)
    short, long = model.encode_text(ids, mask), model.encode_text(padded, longer)
    torch.testing.assert_close(short.output, long.output)
    torch.testing.assert_close(short.output[:1], model.encode_text(ids[:1], None).output)


@torch.no_grad()
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_captured_attention_is_that_of_the_last_layer(
    model: DualEncoder, pixels: Tensor, ids: Tensor, mask: Tensor, tower: str
) -> None:
    attention = model.get_submodule(f"{tower}.encoder.layers.{1 if tower == 'vision' else 2}.self_attn")
    kept: list[Tensor] = []
    attention.get_submodule("v_proj").register_forward_hook(lambda _m, _given, out: kept.append(out))
    attention.get_submodule("out_proj").register_forward_hook(lambda _m, given, _out: kept.append(given[0]))
    if tower == "vision":
        state = model.encode_image(pixels, capture=True).self_attention
    else:
        state = model.encode_text(ids, mask, capture=True).self_attention
    assert state is not None
    scores = state.scale * state.query @ state.key.mT
    if state.mask is not None:
        scores = scores.masked_fill(~state.mask, -torch.inf)
    value = kept[0].unflatten(-1, (state.query.shape[1], -1)).transpose(1, 2)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    real = mask if tower == "text" else torch.ones(mixed.shape[:2], dtype=torch.bool)
    torch.testing.assert_close(mixed[real], kept[1][real])


def test_gradients_reach_every_parameter_and_no_hook_stays(
    model: DualEncoder, pixels: Tensor, ids: Tensor, mask: Tensor
) -> None:
    similarity = model.encode_image(pixels, capture=True).output @ model.encode_text(ids, mask).output.T
    (similarity / model.temperature).logsumexp(0).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert not any(module._forward_hooks for module in model.modules())


def test_what_clip_does_not_have_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"no fusion: leave out text.fusion_layers"):
        ClipConfig(vision=vision(), text=text(fusion_layers=1))
