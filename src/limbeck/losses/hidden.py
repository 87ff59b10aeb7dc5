"""Hidden-state distillation (DLIP, Eq. 3) and the sign of its collapse."""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.kernels.precision import at_least_float32


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - cos`` of each pair of vectors (DLIP, Eq. 3), between 0 and 2.

    student, teacher [..., D], already mapped to one width -> [...] float32. A zero vector is at distance 1 from all.
    The teacher's side is not detached, since Eq. 3 as printed learns a map on that side too: what the teacher itself
    computed must come without a graph.
    Raises ValueError when the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"cosine_distance: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape; "
            "map one to the other's width"
        )
    return 1 - F.cosine_similarity(at_least_float32(student), at_least_float32(teacher), dim=-1)


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """In how many directions features vary: exp of the entropy of their singular values (Roy and Vetterli, 2007).

    features [..., D], centred here over all leading dimensions -> scalar between 1 and D. When both maps of Eq. 3 are
    learnt, student and teacher can agree on one direction that says nothing: the rank of the mapped teacher falls
    towards 1. It costs a singular value decomposition, so a few hundred vectors are what to pass.
    Features that do not vary at all have rank 1.
    """
    rows = at_least_float32(features).flatten(0, -2)
    spectrum = torch.linalg.svdvals(rows - rows.mean(0))
    share = spectrum / spectrum.sum().clamp(min=torch.finfo(spectrum.dtype).tiny)
    return torch.exp(-torch.xlogy(share, share).sum())
