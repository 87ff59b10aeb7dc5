"""KL between two layers' attention maps, from their queries and keys.

Per row, with S = scale * q @ k.T of the student, T of the teacher and A their softmax:
KL = sum A_T (T - S) - LSE_T + LSE_S, and dKL/dS = A_S - A_T. Value and gradient come from the same pass over blocks of
rows, so the backward pass only multiplies; what is kept is the student's gradient, as large as its queries and keys.

Where one group of heads is averaged, Ā = mean of A_h over the student's heads h of the group: with
R_h = Ā_T * A_h / sum_h A_h, dKL/dS_h = A_h * (sum over keys of R_h) - R_h, which is A_S - A_T for a group of one.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.kernels import attention_torch
from limbeck.types import AttentionState

TRITON = find_spec("triton") is not None


def group_mean_divergence(student: AttentionState, teacher: AttentionState, weight: Tensor, groups: int) -> Tensor:
    """Sum over rows of `weight` [B, T] times the KL of maps averaged inside `groups` groups of heads: a float32 scalar.

    The mean over the groups is taken here. `groups` divides both numbers of heads. A gradient reaches the student's
    query and key alone.
    """
    return _Divergence.apply(student.query, student.key, student, teacher, weight, groups)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        student: AttentionState,
        teacher: AttentionState,
        weight: Tensor,
        groups: int,
    ) -> Tensor:
        mask = student.mask
        if teacher.mask is not None and teacher.mask is not mask:
            mask = teacher.mask if mask is None else mask & teacher.mask
        if mask is not None:
            batch, _, queries, _ = query.shape
            sees_a_key = mask.any(-1, keepdim=True).expand(batch, 1, queries, 1)
            weight = weight * sees_a_key[:, 0, :, 0]
        if query.is_cuda and TRITON and query.dtype != torch.float64:
            from limbeck.kernels import attention_triton as path
        else:
            path = attention_torch
        with torch.autocast(query.device.type, enabled=False):
            total, gradients = path.divergence(
                student, teacher, mask, weight / groups, groups, any(ctx.needs_input_grad)
            )
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        to_query, to_key = ctx.saved_tensors
        return to_query * upstream[0], to_key * upstream[0], None, None, None, None
