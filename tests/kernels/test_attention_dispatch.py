from math import prod

import pytest
import torch

from limbeck.kernels import attention_torch
from limbeck.kernels.attention import group_mean_divergence
from limbeck.types import AttentionState


@pytest.mark.parametrize("block", [1, 30, 100, 1000, 10**6])
def test_blocks_cover_every_row_once_and_keep_to_their_size(monkeypatch, block):
    monkeypatch.setitem(attention_torch.BLOCK, "cpu", block)
    batch, groups, queries, row = 3, 4, 7, 10
    seen = torch.zeros(batch, groups, queries)
    for slices in attention_torch._blocks(batch, groups, queries, row, "cpu"):
        seen[slices] += 1
        assert prod(part.stop - part.start for part in slices) * row <= max(block, row)
    assert (seen == 1).all()


def test_largest_tensor_made_is_a_block_or_a_gradient(monkeypatch):
    """12 maps of 256 x 256 would be 786,432 elements; queries and keys are 98,304 each."""
    monkeypatch.setitem(attention_torch.BLOCK, "cpu", 2**16)
    query, key = (torch.randn(1, 12, 256, 32, requires_grad=True) for _ in range(2))
    layer = AttentionState(query=query, key=key, mask=None, scale=32**-0.5)

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
            return result

    with Largest() as largest:
        group_mean_divergence(layer, layer, torch.ones(1, 256), 12).backward()
    assert 2**16 <= largest.elements <= query.numel()


def test_evaluation_without_a_graph_gives_the_value():
    query, key = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    student = AttentionState(query=query, key=key, mask=None, scale=0.5)
    teacher = AttentionState(query=key, key=query, mask=None, scale=0.5)
    with torch.no_grad():
        value = group_mean_divergence(student, teacher, torch.ones(1, 5), 2)
    query.requires_grad_()
    assert group_mean_divergence(student, teacher, torch.ones(1, 5), 2) == value
    assert not value.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives():
    layers = [
        AttentionState(query=torch.randn(2, heads, 33, 16), key=torch.randn(2, heads, 33, 16), mask=None, scale=0.25)
        for heads in (6, 4)
    ]
    moved = [
        AttentionState(query=layer.query.cuda(), key=layer.key.cuda(), mask=None, scale=layer.scale) for layer in layers
    ]
    weight = torch.rand(2, 33)
    on_cpu = group_mean_divergence(*layers, weight, 2)
    torch.testing.assert_close(group_mean_divergence(*moved, weight.cuda(), 2).cpu(), on_cpu, rtol=1e-4, atol=1e-5)
