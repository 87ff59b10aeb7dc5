"""What a model looks at: attention over a picture's patches, one row of a map at a time, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from limbeck.data.examples import Example
from limbeck.data.transform import clean_caption
from limbeck.evaluation.inputs import TaskConfig, encode, evaluating, picture_batches
from limbeck.models.clip import DualEncoder
from limbeck.models.fusion import FusionVLM
from limbeck.types import AttentionState


def attention_row(state: AttentionState, query: int | Tensor) -> Tensor:
    """The attention of one query position of each picture or text, mean over heads: [B, S], each row sums to 1.

    `query` is a position, or one for each row [B].
    """
    count = len(state.query)
    rows = torch.arange(count, device=state.query.device)
    position = torch.as_tensor(query, device=rows.device).expand(count)
    picked = state.query[rows, :, position].float()
    scores = state.scale * torch.einsum("bhd,bhsd->bhs", picked, state.key.float())
    if state.mask is not None:
        mask = state.mask.expand(count, 1, state.query.shape[2], state.key.shape[2])[rows, 0, position]
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
    return scores.softmax(-1).mean(1)


def attention_view(
    model: FusionVLM | DualEncoder,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    *,
    device: torch.device,
    max_length: int = 40,
) -> list[dict[str, Any]]:
    """For each of a handful of pictures, what its class token and the words of its first caption look at.

    Each is `{"id", "caption", "grid", "image", "words"}`, ready for JSON: `grid` is how many patches a side has,
    `image` the class token's attention over the grid * grid patches in the image tower's last layer, `words` a list of
    `{"token", "attention"}` from the last cross-attention (decoder, or fusion where there is no decoder) and empty for
    a dual encoder or without a caption. The class token's own share is left out, so that a row sums to at most 1.
    A picture that does not decode is left out.
    """
    views: list[dict[str, Any]] = []
    config = TaskConfig(batch_size=max(1, len(examples)), max_skipped=1.0)
    with evaluating(model, device, bf16=False):
        for batch, pixels in picture_batches(examples, model.config.vision.image_size, config, device):
            seen = model.encode_image(pixels, capture=True)
            assert seen.self_attention is not None
            patches = attention_row(seen.self_attention, 0)[:, 1:]
            captions = [clean_caption(example.captions[0]) if example.captions else "" for example in batch]
            words: list[list[dict[str, Any]]] = [[] for _ in batch]
            if isinstance(model, FusionVLM):
                words = _words(model, tokenizer, seen.hidden, captions, max_length)
            views += [
                {
                    "id": example.id,
                    "caption": caption,
                    "grid": round(len(attention) ** 0.5),
                    "image": _listed(attention),
                    "words": looks,
                }
                for example, caption, attention, looks in zip(batch, captions, patches, words, strict=True)
            ]
    return views


def _words(
    model: FusionVLM, tokenizer: PreTrainedTokenizerFast, hidden: Tensor, captions: Sequence[str], max_length: int
) -> list[list[dict[str, Any]]]:
    """Each caption's tokens and what they look at: for a decoder, the position that the token is written from."""
    ids, mask = encode(tokenizer, captions, max_length, hidden.device)
    memory = model.image_memory(hidden)
    writes = model.config.decoder != "none"
    signals = (model.decode if writes else model.fuse)(memory, ids, mask, capture=True)
    assert signals.cross_attention is not None
    lengths = mask.sum(1).tolist()
    rows: list[list[dict[str, Any]]] = [[] for _ in captions]
    for position in range(1, max(lengths) - 1):
        attention = attention_row(signals.cross_attention, position - 1 if writes else position)[:, 1:]
        for row, length in enumerate(lengths):
            if position < length - 1:
                token = tokenizer.convert_ids_to_tokens(int(ids[row, position]))
                rows[row].append({"token": token, "attention": _listed(attention[row])})
    return rows


def _listed(attention: Tensor) -> list[float]:
    return [round(value, 5) for value in attention.tolist()]
