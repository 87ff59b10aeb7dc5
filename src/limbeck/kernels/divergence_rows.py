"""Divergences and cross-entropy of a few rows of logits, each with its gradient, in as few sweeps as PyTorch allows.

With s, t the logits, p, q their softmaxes (student, teacher) and <p, x> the sum of p x over the vocabulary:

    forward     KL(q || p) = <q, t - s> - LSE_t + LSE_s                             d/ds = p - q
    reverse     KL(p || q) = <p, s - t> - LSE_s + LSE_t                             d/ds = p (s - t - <p, s - t>)
    jsd         beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p
                                                d/ds = (1 - beta) p (s - log m - <p, s - log m>)

Every tensor is a block [R, V] that the caller owns, small enough to stay in the cache between sweeps; `student` and
`teacher` hold the logits and are overwritten, `student` by the gradient; `own` and `other` are room to work in.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def forward_kl(student: Tensor, teacher: Tensor, own: Tensor, other: Tensor, beta: float) -> Tensor:
    """KL(teacher || student) of each row [R]."""
    own_lse, other_lse = _softmax(student, own), _softmax(teacher, other)
    divergence = torch.linalg.vecdot(other, teacher.sub_(student)).add_(own_lse).sub_(other_lse)
    torch.sub(own, other, out=student)
    return divergence


def reverse_kl(student: Tensor, teacher: Tensor, own: Tensor, other: Tensor, beta: float) -> Tensor:
    """KL(student || teacher) of each row [R]."""
    own_lse, other_lse = _softmax(student, own), _softmax(teacher, other)
    mean = torch.linalg.vecdot(own, student.sub_(teacher))
    student.sub_(mean[:, None]).mul_(own)
    return mean.sub_(own_lse).add_(other_lse)


def jsd(student: Tensor, teacher: Tensor, own: Tensor, other: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of each row [R]. The mixture takes the teacher's place."""
    own_lse, other_lse = _softmax(student, own), _softmax(teacher, other)
    to_teacher = torch.linalg.vecdot(other, teacher).sub_(other_lse)
    mixture = torch.lerp(own, other, beta, out=teacher).clamp_(min=torch.finfo(own.dtype).tiny).log_()
    to_teacher.sub_(torch.linalg.vecdot(other, mixture))
    mean = torch.linalg.vecdot(own, student.sub_(mixture))
    student.sub_(mean[:, None]).mul_(own).mul_(1 - beta)
    return to_teacher.mul_(beta).add_(mean.sub_(own_lse), alpha=1 - beta)


DIVERGENCES: dict[str, Divergence] = {"forward": forward_kl, "reverse": reverse_kl, "jsd": jsd}


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, gradient: Tensor) -> Tensor:
    """Cross-entropy of each row [R] with its label, all real; `gradient` [R, V] is written, the logits stay."""
    lse = _softmax(logits, gradient)
    right = logits.gather(1, labels[:, None])[:, 0]
    if smoothing:
        right = right.mul_(1 - smoothing).add_(logits.mean(1), alpha=smoothing)
        gradient.sub_(smoothing / logits.shape[1])
    gradient.scatter_add_(1, labels[:, None], gradient.new_full((len(labels), 1), smoothing - 1))
    return lse.sub_(right)


def _softmax(logits: Tensor, out: Tensor) -> Tensor:
    """Write the softmax, return the LSE [R]: from the greatest logit and its probability, which spares an exp each."""
    torch.softmax(logits, -1, out=out)
    return logits.amax(-1).sub_(out.amax(-1).log_())
