"""What CTVLM does to sequences of tokens: leave out the picture, find the end, move the padding, smooth a target."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.types import IGNORE, ConversationBatch


def smoothed(right: Tensor, choices: int, smoothing: float = 0.1) -> Tensor:
    """The right one of so many choices [B] as probabilities [B, choices], a share spread evenly (BLIP-2's ITC)."""
    targets = torch.full((len(right), choices), smoothing / choices, device=right.device)
    return targets.scatter_(1, right[:, None], 1 - smoothing + smoothing / choices)


def without_pictures(batch: ConversationBatch, image_token_id: int) -> tuple[Tensor, Tensor]:
    """The texts alone: ids and mask [B, T - N] of rows that all hold the same number N of image tokens."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    kept = ids != image_token_id
    length = int(kept.sum(1)[0])
    return ids[kept].view(len(ids), length), mask[kept].view(len(ids), length)


def last_of(hidden: Tensor, mask: Tensor) -> Tensor:
    """The hidden state of each row's last real token, [B, T, D] -> [B, D]; rows are padded on the right."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


def to_left(ids: Tensor, kept: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """The `kept` tokens [B, T] of each row, padded on the left to the longest: ids and mask."""
    lengths = kept.sum(1)
    place = torch.arange(int(lengths.max()), device=ids.device)
    mask = place >= (len(place) - lengths)[:, None]
    moved = torch.full(mask.shape, pad, dtype=ids.dtype, device=ids.device)
    moved[mask] = ids[kept]
    return moved, mask


def to_right(ids: Tensor, kept: Tensor, labels: Tensor, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `kept` tokens [B, T] of each row and their labels, padded on the right to the longest: ids, mask, labels."""
    lengths = kept.sum(1)
    mask = torch.arange(int(lengths.max()), device=ids.device) < lengths[:, None]
    moved = torch.full(mask.shape, pad, dtype=ids.dtype, device=ids.device)
    moved_labels = torch.full_like(moved, IGNORE)
    moved[mask], moved_labels[mask] = ids[kept], labels[kept]
    return moved, mask, moved_labels
