"""Recall at 1, 5 and 10 from a matrix of scores, texts for a picture (TR) and pictures for a text (IR). In percent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)
_AT_ONCE = 4096
"""texts whose columns are copied at once"""


def text_ranks(scores: Tensor, own: Tensor) -> Tensor:
    """For each picture, how many texts of other pictures stand before the best of its own.

    scores [I, T], own [I, T] boolean, True where the text describes the picture -> [I] int64, 0 is a hit at 1. A
    foreign text with the same score stands before an own one, so a model that scores everything alike finds nothing.
    Raises ValueError where a picture has no text or a score is not finite.
    """
    _check_finite(scores)
    if not own.any(1).all():
        bare = (~own.any(1)).nonzero().flatten().tolist()
        raise ValueError(f"text_ranks: rows {bare[:5]} of the scores have no text of their own")
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~own).sum(1)


def picture_ranks(scores: Tensor, own: Tensor) -> Tensor:
    """For each picture and text of its own, how many pictures that the text does not describe stand before this one.

    scores, own [I, T] -> [P] int64, in the order of `own.nonzero()`. Raises ValueError where a score is not finite.
    """
    _check_finite(scores)
    picture, text = own.nonzero().unbind(1)
    return torch.cat(
        [
            ((scores[:, texts] >= scores[pictures, texts]) & ~own[:, texts]).sum(0)
            for pictures, texts in zip(picture.split(_AT_ONCE), text.split(_AT_ONCE), strict=True)
        ]
    )


def recalls(texts: Sequence[int], pictures: Sequence[int]) -> dict[str, float]:
    """TR@k, IR@k and their mean R-mean, in percent, from the ranks of texts by picture and of pictures by text."""
    found = {f"TR@{depth}": _share(texts, depth) for depth in DEPTHS}
    found |= {f"IR@{depth}": _share(pictures, depth) for depth in DEPTHS}
    return {**found, "R-mean": sum(found.values()) / len(found)}


def _share(ranks: Sequence[int], depth: int) -> float:
    return 100 * sum(rank < depth for rank in ranks) / len(ranks)


def _check_finite(scores: Tensor) -> None:
    if not scores.isfinite().all():
        raise ValueError("retrieval scores hold NaN or infinity: the model's embeddings are broken")
