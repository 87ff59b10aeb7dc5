"""Where everything stands: the segments of a conversation, and the large model's sequence that is made of them.

    tiny    <s> [P prompt]  picture x N  [T text]                answer </s>
    large   <s> [P prompt]  P2(F)        [T text, its own words] answer </s>

F are the tiny model's hidden states of the picture, of T too, or of P, picture and T. All of them stand before the
first answer token, and the tiny model is causal, so that no feature knows the answer (the leak rule).
"""

from __future__ import annotations

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


def segments(input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None, image_token_id: int) -> Tensor:
    """Ids, mask and shifted labels [B, T] -> the segment of each token [B, T]. Without labels nothing is answer."""
    is_image = input_ids == image_token_id
    after = is_image.cumsum(1) > 0
    found = torch.where(is_image, IMAGE, torch.where(after, TEXT, PROMPT))
    if labels is not None:
        supervised = labels != IGNORE
        answer = supervised.cumsum(1) - supervised.long() > 0
        found = torch.where(answer & ~is_image, ANSWER, found)
        if bool((answer & is_image).any()):
            row = int((answer & is_image).any(1).nonzero()[0])
            raise ValueError(f"row {row} has supervised tokens before its picture; pictures come before the answer")
    return found.masked_fill(~attention_mask.bool(), PADDING)


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


def move_labels(labels: Tensor, packing: Packing) -> Tensor:
    """Shifted labels [B, T] of the tiny sequence -> of the large one [B, L]; a row's targets keep their order.

    The target of a place is the token after it: a token is predicted at the place before its own.
    """
    target = torch.cat((torch.full_like(labels[:, :1], IGNORE), labels[:, :-1]), dim=1)
    own = target.gather(1, packing.source).masked_fill(~packing.is_word, IGNORE)
    return torch.cat((own[:, 1:], torch.full_like(own[:, :1], IGNORE)), dim=1)
