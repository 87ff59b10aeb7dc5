"""Where everything stands: the segments of a conversation, and the large model's sequence that is made of them.

    tiny    <s> [P prompt]  picture x N  [T text]                answer </s>
    large   <s> [P prompt]  P2(F)        [T text, its own words] answer </s>

F are the tiny model's hidden states of the picture, of T too, or of P, picture and T. All of them stand before the
first answer token, and the tiny model is causal, so that no feature knows the answer (the leak rule).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.models.duet_config import Features
from limbeck.types import IGNORE

PADDING, PROMPT, IMAGE, TEXT, ANSWER = range(5)
"""What a token of a conversation belongs to."""
READ: dict[Features, tuple[int, ...]] = {"I": (IMAGE,), "I+T": (IMAGE, TEXT), "P+I+T": (PROMPT, IMAGE, TEXT)}
"""The segments whose hidden states the large model reads."""


class Packing(NamedTuple):
    """For each of L places of the large sequences, what stands there."""

    source: Tensor
    """[B, L] the place in the tiny sequence that it comes from"""
    is_feature: Tensor
    """[B, L] the tiny model's hidden state there"""
    is_word: Tensor
    """[B, L] the large model's own embedding of the token there; padding is neither"""


def segments(
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor | None,
    image_token_id: int,
    answer_marker: Sequence[int] | None = None,
) -> Tensor:
    """Ids, mask and shifted labels [B, T] -> the segment of each token [B, T].

    The answer begins at the first supervised token; without labels behind the first `answer_marker` after the picture,
    so that earlier answers and later questions count as in training. Without either nothing is answer.
    """
    is_image = input_ids == image_token_id
    after = is_image.cumsum(1) > 0
    found = torch.where(is_image, IMAGE, torch.where(after, TEXT, PROMPT))
    last = _ends_of(answer_marker or (), input_ids, after) if labels is None else labels != IGNORE
    answer = last.cumsum(1) - last.long() > 0
    if bool((answer & is_image).any()):
        row = int((answer & is_image).any(1).nonzero()[0])
        raise ValueError(f"row {row} has supervised tokens before its picture; pictures come before the answer")
    return torch.where(answer, ANSWER, found).masked_fill(~attention_mask.bool(), PADDING)


def pack(segment: Tensor, features: Features, *, has_features: bool = True, left: bool = False) -> Packing:
    """Segments [B, T] -> the large sequences, padded on the right or on the left.

    `has_features` is False where a fusion leaves picture tokens out of the tiny sequence: their states are none.
    """
    length = segment.shape[1]
    read = torch.tensor([part in READ[features] for part in range(5)], device=segment.device)
    if not has_features:
        read[IMAGE] = False
    is_feature = read[segment]
    is_word = (segment != PADDING) & (segment != IMAGE)
    # first the prompt's words (0), then features (1), then other words (2), each in order; what is not there last (3)
    group = torch.cat((torch.where(segment == PROMPT, 0, 2), torch.ones_like(segment)), dim=1)
    present = torch.cat((is_word, is_feature), dim=1)
    order = group.masked_fill(~present, 3).argsort(dim=1, stable=True)
    lengths = present.sum(1)
    longest = int(lengths.max())
    columns = torch.arange(longest, device=segment.device)[None]
    if left:
        columns = columns - (longest - lengths)[:, None]
    taken = order.gather(1, columns.clamp_min(0).expand(len(segment), -1))
    real = (columns >= 0) & (columns < lengths[:, None])
    return Packing(taken % length, real & (taken >= length), real & (taken < length))


def large_length(tiny: int, counts: Mapping[int, int], features: Features, *, has_features: bool = True) -> int:
    """Tokens of the large sequence that `pack` makes of `tiny` ones, of which `counts` are in each segment."""
    read = sum(counts[part] for part in READ[features] if has_features or part != IMAGE)
    return tiny - counts[IMAGE] + read


def move_labels(labels: Tensor, packing: Packing) -> Tensor:
    """Shifted labels [B, T] of the tiny sequence -> of the large one [B, L]; a row's targets keep their order.

    The target of a place is the token after it: a token is predicted at the place before its own.
    """
    target = torch.cat((torch.full_like(labels[:, :1], IGNORE), labels[:, :-1]), dim=1)
    own = target.gather(1, packing.source).masked_fill(~packing.is_word, IGNORE)
    return torch.cat((own[:, 1:], torch.full_like(own[:, :1], IGNORE)), dim=1)


def _ends_of(marker: Sequence[int], ids: Tensor, wanted: Tensor) -> Tensor:
    """Ids [B, T] -> where a marker ends that begins at a `wanted` place [B, T]."""
    ends, size = torch.zeros_like(wanted), len(marker)
    if 0 < size <= ids.shape[1]:
        found = (ids.unfold(1, size, 1) == ids.new_tensor(marker)).all(-1)
        ends[:, size - 1 :] = found & wanted[:, : found.shape[1]]
    return ends
