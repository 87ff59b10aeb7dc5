"""The attention divergence in Triton, for CUDA. Logits live in registers alone, one tile of rows by keys at a time.

Three passes, four where the student's heads are averaged; no atomics, so the result is the same every time:

    _normalisers      LSE of every row, of student and teacher
    _shares           only for averaged student heads: the sum over keys of R_h (see kernels/attention.py)
    _query_gradient   a block of rows against all keys: the rows' KL, and the gradient to the student's queries
    _key_gradient     a block of keys against all rows: the gradient to the student's keys

A program works on one student head, and makes the logits of the other heads of its group again. Heads of all pictures
are numbered through: head h of picture b is b * H + h, and so are groups.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from limbeck.types import AttentionState

FORBIDDEN = tl.constexpr(-1e30)


def divergence(
    student: AttentionState,
    teacher: AttentionState,
    mask: Tensor | None,
    weight: Tensor,
    groups: int,
    gradient: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Weighted sum of the rows' KL over all groups, and its gradient to the student's query and key if asked for."""
    batch, heads, queries, width = student.query.shape
    _, teacher_heads, keys, teacher_width = teacher.key.shape
    if mask is None:
        mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=weight.device)
    mask = mask.expand(batch, 1, queries, keys)
    own = (student.query.contiguous(), student.key.contiguous())
    other = (teacher.query.contiguous(), teacher.key.contiguous())
    own_lse = weight.new_empty((batch, heads, queries))
    other_lse = weight.new_empty((batch, teacher_heads, queries))
    share = torch.ones_like(own_lse)
    rows = weight.new_empty((batch, groups, queries))
    to_query, to_key = (torch.empty_like(tensor) for tensor in own)

    block = 64 if max(width, teacher_width) <= 128 and student.query.element_size() == 2 else 32
    by_rows, by_keys = triton.cdiv(queries, block), triton.cdiv(keys, block)
    looked_at = (mask, mask.stride(0), mask.stride(2), mask.stride(3))
    shape = {"queries": queries, "keys": keys, "BLOCK": block}
    maps = (*own, own_lse, student.scale, *other, other_lse, teacher.scale, *looked_at)
    sizes = {
        **shape,
        "heads": heads,
        "WIDTH": width,
        "PADDED": _padded(width),
        "GROUP": heads // groups,
        "TEACHER_WIDTH": teacher_width,
        "TEACHER_PADDED": _padded(teacher_width),
        "TEACHER_GROUP": teacher_heads // groups,
    }
    with torch.cuda.device_of(weight):
        for (query, key), lse, scale in ((own, own_lse, student.scale), (other, other_lse, teacher.scale)):
            _normalisers[(by_rows, batch * lse.shape[1])](
                query, key, lse, scale, *looked_at, **shape,
                heads=lse.shape[1], WIDTH=query.shape[3], PADDED=_padded(query.shape[3]),
            )  # fmt: skip
        if heads > groups:
            _shares[(by_rows, batch * heads)](*maps, share, **sizes)
        _query_gradient[(by_rows, batch * heads)](*maps, share, weight, rows, to_query, **sizes, GRADIENT=gradient)
        if gradient:
            _key_gradient[(by_keys, batch * heads)](*maps, share, weight, to_key, **sizes)
    return rows.sum(), (to_query, to_key) if gradient else ()


def _padded(width: int) -> int:
    """The head width as a tile's side: a power of two, 16 at least."""
    return max(triton.next_power_of_2(width), 16)


@triton.jit
def _load(tensor, head, positions, length, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """[BLOCK, PADDED]: vectors of one head at `positions`, zero beyond `length` and WIDTH."""
    dims = tl.arange(0, PADDED)
    inside = (positions[:, None] < length) & (dims[None, :] < WIDTH)
    return tl.load(tensor + (head * length + positions[:, None]) * WIDTH + dims[None, :], mask=inside, other=0.0)


@triton.jit
def _allowed(mask, by_picture, by_row, by_key, picture, rows, columns, queries, keys):
    """[BLOCK, BLOCK] boolean: which of the `rows` may look at which of the `columns`."""
    inside = (rows[:, None] < queries) & (columns[None, :] < keys)
    where = mask + picture * by_picture + rows[:, None] * by_row + columns[None, :] * by_key
    return inside & (tl.load(where, mask=inside, other=0) != 0)


@triton.jit
def _logits(query, key, scale, allowed):
    return tl.where(allowed, tl.dot(query, tl.trans(key), input_precision="ieee") * scale, FORBIDDEN)


@triton.jit
def _log_map(
    query, key, lse, scale, head, allowed, rows, columns, queries, keys, WIDTH: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """[BLOCK, BLOCK] log A of one head."""
    logits = _logits(
        _load(query, head, rows, queries, WIDTH, PADDED), _load(key, head, columns, keys, WIDTH, PADDED), scale, allowed
    )
    return logits - tl.load(lse + head * queries + rows, mask=rows < queries, other=0.0)[:, None]


@triton.jit
def _log_mean(
    query, key, lse, scale, group, allowed, rows, columns, queries, keys,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """[BLOCK, BLOCK] log of the mean of A over one group of heads."""
    top = _log_map(query, key, lse, scale, group * GROUP, allowed, rows, columns, queries, keys, WIDTH, PADDED)
    if GROUP > 1:
        total = tl.full(top.shape, 1.0, tl.float32)
        for index in range(1, GROUP):
            log_map = _log_map(
                query, key, lse, scale, group * GROUP + index, allowed, rows, columns, queries, keys, WIDTH, PADDED
            )
            higher = tl.maximum(top, log_map)
            total = total * tl.exp(top - higher) + tl.exp(log_map - higher)
            top = higher
        top += tl.log(total / GROUP)
    return top


@triton.jit
def _tile(
    query, key, lse, scale, teacher_query, teacher_key, teacher_lse, teacher_scale,
    mask, by_picture, by_row, by_key, head, rows, columns, queries, keys, heads,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr,
    TEACHER_WIDTH: tl.constexpr, TEACHER_PADDED: tl.constexpr, TEACHER_GROUP: tl.constexpr,
):  # fmt: skip
    """One student head's log A, its group's log mean map in student and in teacher, and R; each [BLOCK, BLOCK]."""
    group = head // GROUP
    allowed = _allowed(mask, by_picture, by_row, by_key, head // heads, rows, columns, queries, keys)
    target = _log_mean(
        teacher_query, teacher_key, teacher_lse, teacher_scale, group, allowed, rows, columns, queries, keys,
        TEACHER_WIDTH, TEACHER_PADDED, TEACHER_GROUP,
    )  # fmt: skip
    log_map = _log_map(query, key, lse, scale, head, allowed, rows, columns, queries, keys, WIDTH, PADDED)
    mean = log_map
    responsibility = tl.exp(target)
    if GROUP > 1:
        mean = _log_mean(query, key, lse, scale, group, allowed, rows, columns, queries, keys, WIDTH, PADDED, GROUP)
        responsibility *= tl.exp(log_map - mean) / GROUP
    return log_map, mean, target, responsibility


@triton.jit
def _normalisers(
    query, key, lse, scale, mask, by_picture, by_row, by_key, queries, keys, heads,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1).to(tl.int64)
    own = _load(query, head, rows, queries, WIDTH, PADDED)
    top = tl.full((BLOCK,), FORBIDDEN, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, keys, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        allowed = _allowed(mask, by_picture, by_row, by_key, head // heads, rows, columns, queries, keys)
        logits = _logits(own, _load(key, head, columns, keys, WIDTH, PADDED), scale, allowed)
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        top = higher
    tl.store(lse + head * queries + rows, top + tl.log(total), mask=rows < queries)


@triton.jit
def _shares(
    query, key, lse, scale, teacher_query, teacher_key, teacher_lse, teacher_scale,
    mask, by_picture, by_row, by_key, share, queries, keys, heads,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr,
    TEACHER_WIDTH: tl.constexpr, TEACHER_PADDED: tl.constexpr, TEACHER_GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, keys, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        _, _, _, responsibility = _tile(
            query, key, lse, scale, teacher_query, teacher_key, teacher_lse, teacher_scale,
            mask, by_picture, by_row, by_key, head, rows, columns, queries, keys, heads,
            WIDTH, PADDED, GROUP, TEACHER_WIDTH, TEACHER_PADDED, TEACHER_GROUP,
        )  # fmt: skip
        total += tl.sum(responsibility, 1)
    tl.store(share + head * queries + rows, total, mask=rows < queries)


@triton.jit
def _query_gradient(
    query, key, lse, scale, teacher_query, teacher_key, teacher_lse, teacher_scale,
    mask, by_picture, by_row, by_key, share, weight, divergences, to_query, queries, keys, heads,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr,
    TEACHER_WIDTH: tl.constexpr, TEACHER_PADDED: tl.constexpr, TEACHER_GROUP: tl.constexpr, BLOCK: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1).to(tl.int64)
    inside = rows < queries
    own_share = tl.load(share + head * queries + rows, mask=inside, other=0.0)[:, None]
    total = tl.zeros((BLOCK,), tl.float32)
    gradient = tl.zeros((BLOCK, PADDED), tl.float32)
    for first in range(0, keys, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        log_map, mean, target, responsibility = _tile(
            query, key, lse, scale, teacher_query, teacher_key, teacher_lse, teacher_scale,
            mask, by_picture, by_row, by_key, head, rows, columns, queries, keys, heads,
            WIDTH, PADDED, GROUP, TEACHER_WIDTH, TEACHER_PADDED, TEACHER_GROUP,
        )  # fmt: skip
        total += tl.sum(tl.exp(target) * (target - mean), 1)
        if GRADIENT:
            to_logits = tl.exp(log_map) * own_share - responsibility
            keyed = _load(key, head, columns, keys, WIDTH, PADDED)
            gradient += tl.dot(to_logits.to(keyed.dtype), keyed, input_precision="ieee")
    row_weight = tl.load(weight + head // heads * queries + rows, mask=inside, other=0.0)
    if head % GROUP == 0:
        tl.store(divergences + head // GROUP * queries + rows, total * row_weight, mask=inside)
    if GRADIENT:
        dims = tl.arange(0, PADDED)
        where = to_query + (head * queries + rows[:, None]) * WIDTH + dims[None, :]
        gradient *= row_weight[:, None] * scale
        tl.store(where, gradient.to(to_query.dtype.element_ty), mask=inside[:, None] & (dims[None, :] < WIDTH))


@triton.jit
def _key_gradient(
    query, key, lse, scale, teacher_query, teacher_key, teacher_lse, teacher_scale,
    mask, by_picture, by_row, by_key, share, weight, to_key, queries, keys, heads,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr,
    TEACHER_WIDTH: tl.constexpr, TEACHER_PADDED: tl.constexpr, TEACHER_GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1).to(tl.int64)
    gradient = tl.zeros((BLOCK, PADDED), tl.float32)
    for first in range(0, queries, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        log_map, _, _, responsibility = _tile(
            query, key, lse, scale, teacher_query, teacher_key, teacher_lse, teacher_scale,
            mask, by_picture, by_row, by_key, head, rows, columns, queries, keys, heads,
            WIDTH, PADDED, GROUP, TEACHER_WIDTH, TEACHER_PADDED, TEACHER_GROUP,
        )  # fmt: skip
        inside = rows < queries
        own_share = tl.load(share + head * queries + rows, mask=inside, other=0.0)
        row_weight = tl.load(weight + head // heads * queries + rows, mask=inside, other=0.0)
        to_logits = (tl.exp(log_map) * own_share[:, None] - responsibility) * row_weight[:, None]
        queried = _load(query, head, rows, queries, WIDTH, PADDED)
        gradient += tl.dot(tl.trans(to_logits).to(queried.dtype), queried, input_precision="ieee")
    dims = tl.arange(0, PADDED)
    where = to_key + (head * keys + columns[:, None]) * WIDTH + dims[None, :]
    stored = (columns[:, None] < keys) & (dims[None, :] < WIDTH)
    tl.store(where, (gradient * scale).to(to_key.dtype.element_ty), mask=stored)
