"""Which process this is, where it computes, and what a method needs of the others: their features."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of training processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(x: Tensor) -> Tensor:
    """Rows of every process, in the order of ranks; every process must bring the same shape.

    `x` is [B, ...], the answer [world * B, ...]. A gradient flows back to each process's own rows.
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """all_gather whose backward adds up what every process computed for this process's rows.

    Losses are averaged over processes by the wrapper, each process holding its own share of the rows' losses,
    so the sum is the gradient that one process would see for the whole batch.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def device_here() -> torch.device:
    """Where one process computes: the GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
