"""The image tower: sizes, positions, drop path, what it captures."""

import pytest
import torch
from pydantic import ValidationError
from tiny_models import stir, vision
from torch import Tensor
from torch.nn import functional

from limbeck.models.vision import VisionConfig, VisionTransformer, interpolate_positions


def tower(**values: float) -> VisionTransformer:
    model = stir(VisionTransformer(vision().model_copy(update=values)))
    assert isinstance(model, VisionTransformer)
    return model


@torch.no_grad()
def test_captured_queries_and_keys_give_the_last_layers_attention(pixels: Tensor) -> None:
    model = tower()
    inputs = []
    model.blocks[-1].attention.register_forward_hook(lambda _m, given, out: inputs.append((given[0], out[0])))
    _, state = model(pixels, capture=True)
    assert state is not None
    assert state.mask is None
    assert state.query.shape == (3, 2, 17, 12)
    attention = torch.softmax(state.scale * state.query @ state.key.mT, -1)
    hidden, output = inputs[0]
    last = model.blocks[-1].attention
    value = functional.linear(hidden, last.qkv.weight[48:], last.qkv.bias[48:]).unflatten(-1, (2, 12)).transpose(1, 2)
    torch.testing.assert_close(last.output((attention @ value).transpose(1, 2).flatten(2)), output)
    assert model(pixels)[1] is None


def test_positions_of_a_constant_grid_stay_constant_at_every_size() -> None:
    positions = torch.cat((torch.zeros(1, 1, 4), torch.full((1, 16, 4), 3.0)), dim=1)
    larger = interpolate_positions(positions, 6, 9)
    assert larger.shape == (1, 55, 4)
    assert torch.equal(larger[:, 0], positions[:, 0])
    torch.testing.assert_close(larger[:, 1:], torch.full((1, 54, 4), 3.0))
    assert interpolate_positions(positions, 4, 4) is positions


@torch.no_grad()
def test_larger_picture_is_read_with_interpolated_positions() -> None:
    model = tower()
    hidden, _ = model(torch.randn(1, 3, 24, 32))
    assert hidden.shape == (1, 1 + 6 * 8, 24)
    with pytest.raises(ValueError, match="18 x 16 pixels does not divide into patches of 4"):
        model(torch.randn(1, 3, 18, 16))


@torch.no_grad()
def test_drop_path_skips_blocks_for_some_pictures_in_training_alone(pixels: Tensor) -> None:
    model = tower()
    dropping = VisionTransformer(vision().model_copy(update={"drop_path": 0.5}))
    dropping.load_state_dict(model.state_dict())
    assert [block.drop_path for block in dropping.blocks] == [0.0, 0.5]
    torch.testing.assert_close(dropping.eval()(pixels)[0], model(pixels)[0])
    torch.manual_seed(0)
    many = dropping.train()(pixels[:1].expand(64, -1, -1, -1))[0]
    assert len(torch.unique(many[:, 0, 0].round(decimals=4))) == 4, "attention and feed-forward, each kept or skipped"


def test_gradients_reach_every_parameter(pixels: Tensor) -> None:
    model = tower()
    model(pixels)[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 10, "heads": 3}, "width 10 does not divide into heads 3"),
        ({"width": 12, "heads": 3, "image_size": 30}, "image_size 30 does not divide into patch_size 16"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VisionConfig(**values)
