"""Attention distillation (DLIP, Eqs. 4 and 5), from queries and keys: the map is never formed."""

from math import gcd
from typing import Literal

import torch
from torch import Tensor

from limbeck.kernels.attention import group_mean_divergence
from limbeck.types import AttentionState

HeadMap = Literal["group_mean", "relation", "mean", "skip_vision"]


def attention_kl(
    student: AttentionState,
    teacher: AttentionState,
    *,
    row_mask: Tensor | None = None,
    head_map: HeadMap = "group_mean",
    count: Tensor | None = None,
) -> Tensor:
    """KL(A_T || A_S) of two layers' attention, mean over heads and real queries (Eq. 5): a scalar in nats.

    Student and teacher look from the same T queries at the same S keys; heads and head widths may differ. `row_mask`
    [B, T] is True at real queries, None where all are. `count`, a scalar tensor, replaces the number of real queries
    as the divisor, as in `masked_mean`. A key that either mask forbids is left out of both maps; a query that
    may see no key adds 0. A gradient reaches the student alone. Memory grows with T + S, not with T * S.

    `head_map` says how h_T and h_S heads meet; where they are equal, all but `mean` are Eq. 5 itself:

    `group_mean`    averages heads inside gcd(h_T, h_S) groups (12 and 9: 3 groups of 4 and of 3)
    `relation`      cuts queries and keys anew into h_T heads, as MiniLMv2's relations (Wang et al., 2021)
    `mean`          averages all heads
    `skip_vision`   is for a method that leaves out image towers, the only ones whose heads differ: unequal heads are
                    an error here

    Raises ValueError where the shapes do not fit, or the heads do not meet by this `head_map`.
    """
    _check(student, teacher, row_mask)
    student_heads, teacher_heads = student.query.shape[1], teacher.query.shape[1]
    groups = gcd(student_heads, teacher_heads)
    if head_map == "mean":
        groups = 1
    elif head_map == "relation" and student_heads != teacher_heads:
        student, teacher, groups = _recut(student, teacher_heads), teacher, teacher_heads
    elif head_map == "skip_vision" and student_heads != teacher_heads:
        raise ValueError(
            f"attention_kl: head_map 'skip_vision' needs equal numbers of heads, found {student_heads} (student) and "
            f"{teacher_heads} (teacher); leave this tower out, or choose 'group_mean', 'relation' or 'mean'"
        )
    batch, _, queries, _ = student.query.shape
    exact = torch.promote_types(student.query.dtype, torch.float32)
    real = torch.ones((batch, queries), device=student.query.device) if row_mask is None else row_mask
    divisor = real.sum(dtype=exact) if count is None else count
    weight = real.to(exact) / torch.where(divisor > 0, divisor, 1)
    return group_mean_divergence(student, teacher, weight, groups)


def _recut(state: AttentionState, heads: int) -> AttentionState:
    """The same queries and keys, all heads side by side and cut into `heads` new ones; logits by 1 / sqrt(width)."""
    width = state.query.shape[1] * state.query.shape[3]
    if width % heads:
        raise ValueError(
            f"attention_kl: head_map 'relation' cannot cut the student's width {width} into the teacher's {heads} "
            "heads; choose 'group_mean' or 'mean'"
        )

    def cut(tensor: Tensor) -> Tensor:
        return tensor.transpose(1, 2).flatten(2).unflatten(2, (heads, width // heads)).transpose(1, 2)

    return AttentionState(query=cut(state.query), key=cut(state.key), mask=state.mask, scale=(width // heads) ** -0.5)


def _check(student: AttentionState, teacher: AttentionState, row_mask: Tensor | None) -> None:
    sizes = [(state.query.shape[0], state.query.shape[2], state.key.shape[2]) for state in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"attention_kl: student (pictures, queries, keys) {sizes[0]} and teacher {sizes[1]} differ; both must see "
            "the same batch at the same resolution, tokenizer and padding"
        )
    batch, queries, _ = sizes[0]
    if row_mask is not None and row_mask.shape != (batch, queries):
        raise ValueError(
            f"attention_kl: row_mask has shape {tuple(row_mask.shape)}, the queries need {(batch, queries)}"
        )
