"""What matching draws its wrong pairs from and by."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from limbeck.distributed import gather, world_size


def gather_texts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Every process's ids and boolean mask [B, T], in the order of ranks, padded behind to the longest of all."""
    length = torch.tensor(ids.shape[1], device=ids.device)
    if world_size() > 1:
        dist.all_reduce(length, dist.ReduceOp.MAX)
    padding = (0, int(length) - ids.shape[1])
    return gather(functional.pad(ids, padding)), gather(functional.pad(mask, padding).to(torch.uint8)).bool()


def drawn_negatives(logits: Tensor, same: Tensor, draws: Tensor) -> Tensor:
    """One wrong column for each row, by the row's own number: the softmax over columns of other pictures, inverted.

    logits [B, P], same [B, P] boolean, True where row and column show the same picture, draws [B] in [0, 1) -> [B]
    int64. A row whose columns are all the same picture has no negative, and draws any column.
    """
    reached = logits.masked_fill(same, -1e4).softmax(1).cumsum(1)
    whole = reached[:, -1:]
    found = torch.searchsorted(reached, draws.to(reached.dtype)[:, None] * whole, right=True)
    last = (reached < whole).sum(1, keepdim=True)  # where the product rounds up to the whole
    return torch.minimum(found, last)[:, 0]
