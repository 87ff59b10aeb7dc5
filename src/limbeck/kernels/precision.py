"""The precision losses compute in."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or in float64 where it already is: half precision never enters a loss's maths."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
