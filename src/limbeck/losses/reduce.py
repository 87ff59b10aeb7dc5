"""The one mean that all losses share."""

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor | None = None, count: Tensor | None = None) -> Tensor:
    """Mean of `values` (any shape) where `mask` is True, as a scalar.

    `mask` is boolean and has the shape of `values`; None counts every value. `count`, a scalar tensor, replaces the
    number of counted values as the divisor: with this process's share of the whole step in it (`limbeck.types.Counts`),
    micro-batches add up, and processes average, to exactly the mean over the step.

    Where nothing is counted the mean is 0 and so is its gradient, whatever the values are.
    Raises ValueError when mask and values differ in shape.
    """
    if mask is None:
        counted, number = values, values.new_tensor(values.numel())
    elif mask.shape != values.shape:
        raise ValueError(f"masked_mean: the mask has shape {tuple(mask.shape)}, the values {tuple(values.shape)}")
    else:
        counted, number = values.masked_fill(~mask, 0), mask.sum()
    divisor = number if count is None else count
    return counted.sum() / torch.where(divisor > 0, divisor, 1)
