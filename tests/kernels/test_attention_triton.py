"""The Triton path against the PyTorch path: on a GPU where there is one, else in Triton's interpreter."""

import os
from importlib.util import find_spec

import pytest
import torch

from limbeck.kernels import attention_torch
from limbeck.types import AttentionState

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
from limbeck.kernels import attention_triton  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]
"""The interpreter multiplies bfloat16 as if it were integers."""


def layer(heads, queries, keys, width, dtype):
    query, key = (
        torch.randn(2, length, heads, width, dtype=dtype, device=DEVICE).transpose(1, 2) for length in (queries, keys)
    )
    return AttentionState(query=query, key=key, mask=None, scale=width**-0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "queries", "keys", "widths"),
    [
        pytest.param((2, 2), 40, 70, (8, 24), id="cross-attention, unequal widths"),
        pytest.param((1, 2), 33, 33, (16, 16), id="teacher's heads averaged"),
        pytest.param((4, 2), 20, 35, (32, 16), id="student's heads averaged"),
        pytest.param((3, 2), 5, 5, (16, 48), id="both averaged"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients_equal_the_pytorch_path(heads, queries, keys, widths, masked, dtype):
    student, teacher = (layer(count, queries, keys, width, dtype) for count, width in zip(heads, widths, strict=True))
    groups = 2 if heads != (3, 2) and heads != (1, 2) else 1
    mask = None
    if masked:
        mask = torch.rand(2, 1, queries, keys, device=DEVICE) > 0.3
        mask[0, :, 3] = False
    weight = torch.rand(2, queries, device=DEVICE) / queries
    if mask is not None:
        weight *= mask.any(-1)[:, 0]
    found = attention_triton.divergence(student, teacher, mask, weight, groups, True)
    expected = attention_torch.divergence(student, teacher, mask, weight, groups, True)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    for gradient, right in zip(found[1], expected[1], strict=True):
        assert gradient.dtype == dtype
        assert (gradient - right).abs().max() <= tolerance * right.abs().max()


def test_without_a_gradient_the_value_is_the_same():
    student, teacher = layer(2, 20, 20, 16, torch.float32), layer(2, 20, 20, 16, torch.float32)
    weight = torch.rand(2, 20, device=DEVICE)
    value, gradients = attention_triton.divergence(student, teacher, None, weight, 2, False)
    torch.testing.assert_close(value, attention_triton.divergence(student, teacher, None, weight, 2, True)[0])
    assert gradients == ()


def test_a_broadcast_padding_mask_is_read_without_a_copy():
    student, teacher = layer(2, 20, 20, 16, torch.float32), layer(2, 20, 20, 16, torch.float32)
    mask = (torch.arange(20, device=DEVICE) < torch.tensor([[20], [7]], device=DEVICE))[:, None, None]
    weight = torch.rand(2, 20, device=DEVICE)
    found = attention_triton.divergence(student, teacher, mask, weight, 2, True)
    expected = attention_torch.divergence(student, teacher, mask, weight, 2, True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
