"""The attention divergence in PyTorch, for any device: blocks of rows small enough to stay in the cache."""

from collections.abc import Iterator
from math import log

import torch
from torch import Tensor

from limbeck.kernels.precision import at_least_float32
from limbeck.types import AttentionState

BLOCK = {"cpu": 2**20}
"""Elements of one block of the student's logits, by kind of device: 4 MiB in float32, which the last cache holds"""
LARGE_BLOCK = 2**25
"""The same for every other device: 128 MiB, enough to fill an accelerator"""
FORBIDDEN = -1e30
"""Logit of a key that may not be seen. Finite: a row that may see nothing is uniform in both maps."""


def divergence(
    student: AttentionState,
    teacher: AttentionState,
    mask: Tensor | None,
    weight: Tensor,
    groups: int,
    gradient: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Weighted sum of the rows' KL over all groups, and its gradient to the student's query and key if asked for."""
    batch, heads, queries, _ = student.query.shape
    keys = student.key.shape[2]
    dtype = torch.promote_types(student.query.dtype, torch.float32)
    student_group, teacher_group = heads // groups, teacher.query.shape[1] // groups
    if mask is not None:
        mask = mask.expand(batch, 1, queries, keys)
    to_query = torch.empty(student.query.shape if gradient else 0, dtype=dtype, device=weight.device)
    to_key = torch.empty(student.key.shape if gradient else 0, dtype=dtype, device=weight.device)

    def compare(pictures: slice, group: slice, rows: slice) -> Tensor:
        """One block's share of the sum; its gradients are written. The block's memory ends with this call."""
        own = slice(group.start * student_group, group.stop * student_group)
        other = slice(group.start * teacher_group, group.stop * teacher_group)
        query, key = _heads(student.query[pictures, own, rows]), _heads(student.key[pictures, own])
        teacher_query, teacher_key = _heads(teacher.query[pictures, other, rows]), _heads(teacher.key[pictures, other])
        hidden = None if mask is None else ~mask[pictures, :, rows]
        number = pictures.stop - pictures.start
        logits = _logits(query, key, student.scale, hidden, number)
        target = _logits(teacher_query, teacher_key, teacher.scale, hidden, number)
        row_weight = weight[pictures, None, rows].to(dtype)
        if student_group == teacher_group == 1:
            divergences, to_logits = _equal_heads(logits, target)
        else:
            divergences, to_logits = _group_means(
                logits.unflatten(1, (-1, student_group)), target.unflatten(1, (-1, teacher_group))
            )
        if gradient:
            to_logits = to_logits.mul_(row_weight[..., None] * student.scale).flatten(0, 1)
            to_query[pictures, own, rows].flatten(0, 1).baddbmm_(to_logits, key, beta=0)
            to_key[pictures, own].flatten(0, 1).baddbmm_(to_logits.mT, query, beta=int(rows.start > 0))
        return (divergences * row_weight).sum()

    total = torch.zeros((), dtype=dtype, device=weight.device)
    for block in _blocks(batch, groups, queries, student_group * keys, weight.device.type):
        total += compare(*block)
    gradients = (to_query.to(student.query.dtype), to_key.to(student.key.dtype)) if gradient else ()
    return total, gradients


def _blocks(batch: int, groups: int, queries: int, row: int, device: str) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of pictures, groups and rows whose logits, `row` elements for each row of a group, fit one block."""
    budget = BLOCK.get(device, LARGE_BLOCK)
    rows = min(queries, max(budget // row, 1))
    together = min(groups, max(budget // (row * rows), 1)) if rows == queries else 1
    pictures = min(batch, max(budget // (row * rows * together), 1)) if together == groups else 1
    for first_picture in range(0, batch, pictures):
        for first_group in range(0, groups, together):
            for first_row in range(0, queries, rows):
                yield (
                    slice(first_picture, min(first_picture + pictures, batch)),
                    slice(first_group, min(first_group + together, groups)),
                    slice(first_row, min(first_row + rows, queries)),
                )


def _heads(vectors: Tensor) -> Tensor:
    """Vectors [B, H, T, d] as [B * H, T, d] in full precision: a copy at most, of this block alone."""
    return at_least_float32(vectors).flatten(0, 1)


def _logits(query: Tensor, key: Tensor, scale: float, hidden: Tensor | None, batch: int) -> Tensor:
    """[B, H, T, S], `FORBIDDEN` where `hidden` [B, 1, T, S] is True."""
    logits = torch.baddbmm(query.new_empty(()), query, key.mT, beta=0, alpha=scale).unflatten(0, (batch, -1))
    return logits if hidden is None else logits.masked_fill_(hidden, FORBIDDEN)


def _equal_heads(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL of each row and its gradient to the student's logits; logits [..., T, S] are overwritten.

    ``LSE = max - log max softmax`` spares a pass over the exponentials.
    """
    student_map, teacher_map = student.softmax(-1), teacher.softmax(-1)
    student_lse = student.amax(-1).sub_(student_map.amax(-1).log_())
    teacher_lse = teacher.amax(-1).sub_(teacher_map.amax(-1).log_())
    divergences = teacher.sub_(student).mul_(teacher_map).sum(-1)
    return divergences.add_(student_lse).sub_(teacher_lse), student_map.sub_(teacher_map)


def _group_means(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The same for maps averaged over dimension 2: logits [B, groups, heads, T, S] -> [B, groups, T], [B, heads, T, S].

    The student's mean stays in logarithms, so that a key all its heads all but exclude keeps its gradient.
    """
    target = teacher.softmax(-1).mean(2)
    entropy = torch.linalg.vecdot(target, target.clamp(min=torch.finfo(target.dtype).tiny).log_())
    log_maps = student.log_softmax(-1)
    if student.shape[2] == 1:
        log_mean = log_maps.squeeze(2)
        divergences = entropy - torch.linalg.vecdot(target, log_mean)
        return divergences, log_mean.exp_().sub_(target)
    log_mean = log_maps.logsumexp(2).sub_(log(student.shape[2]))
    divergences = entropy - torch.linalg.vecdot(target, log_mean)
    responsibility = (log_maps - log_mean.unsqueeze(2)).exp_().mul_(target.unsqueeze(2)).div_(student.shape[2])
    to_logits = log_maps.exp_().mul_(responsibility.sum(-1, keepdim=True)).sub_(responsibility)
    return divergences, to_logits.flatten(1, 2)
