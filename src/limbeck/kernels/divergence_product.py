"""The matrix products of a vocabulary loss: hidden states and a head of words, through one block of logits.

PyTorch multiplies float32 on CPUs by MKL, which keeps AMD processors to AVX2. Where there is AVX-512, oneDNN, which
PyTorch ships too, is here up to twice as fast (AMD Zen 5: 190 against 90 GFLOP/s a core) and sums as exactly. It is
reached by the operator that `torch.compile` calls, a slice of words at a time: the slice stays in the cache until it
lies in its block.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether float32 products on this CPU go to oneDNN, unless torch.backends.mkldnn is switched off"""
LOGIT_WORDS = 4096
"""Words of one slice of logits"""
HEAD_WORDS = 512
"""Words of one slice of a head's gradient"""


def logit_dtype(hidden: Tensor) -> torch.dtype:
    """What `project` can write: half precision is multiplied into float32 on CUDA alone."""
    return torch.float32 if _half_on_cuda(hidden) else hidden.dtype


def project(hidden: Tensor, head: Tensor, out: Tensor) -> None:
    """``out = hidden @ head.T``: hidden [C, D], head [V, D], out [C, V] of `logit_dtype`."""
    if _half_on_cuda(hidden):
        torch.mm(hidden, head.T, out_dtype=torch.float32, out=out)
    elif _by_onednn(hidden):
        for words in _slices(len(head), LOGIT_WORDS):
            out[:, words] = _linear(hidden, head[words])
    else:
        torch.mm(hidden, head.T, out=out)


def to_hidden(gradient: Tensor, head: Tensor) -> Tensor:
    """The gradient [C, V] of logits carried to the hidden states: ``gradient @ head`` [C, D]."""
    return _linear(gradient, head.T) if _by_onednn(gradient) else gradient @ head


def add_to_head(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """``total += gradient.T @ hidden``: total [V, D] in full precision, gradient [C, V], hidden [C, D]."""
    if _half_on_cuda(hidden):
        torch.addmm(total, gradient.T, hidden, out_dtype=torch.float32, out=total)
    elif _by_onednn(hidden):
        across = hidden.T.contiguous()
        for words in _slices(len(total), HEAD_WORDS):
            total[words] += _linear(gradient[:, words].T.contiguous(), across)
    elif total.dtype != hidden.dtype:
        for words in _slices(len(total), LOGIT_WORDS):
            total[words] += gradient[:, words].T @ hidden
    else:
        total.addmm_(gradient.T, hidden)


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T`` by oneDNN; `weight` or its transpose is contiguous."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


def _by_onednn(tensor: Tensor) -> bool:
    possible = ONEDNN and torch.backends.mkldnn.enabled
    return possible and tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _half_on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype in (torch.float16, torch.bfloat16)


def _slices(words: int, size: int) -> Iterator[slice]:
    for first in range(0, words, size):
        yield slice(first, min(first + size, words))
