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
from limbeck.types import AttentionState, Signals


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

    Each is ready for JSON: `id`; `caption`; `image_attention`, the class token's in the image tower's last layer;
    `words`, a list of `{"token", "attention"}` by the last cross-attention (the decoder's, or the fusion's where there
    is no decoder); `caption_attention`, their mean. An attention is a list of rows of patches, from the top; the class
    token's own share is left out, so that it sums to at most 1. A dual encoder has no cross-attention: there, and
    without a caption, `words` and `caption_attention` are empty. A picture that does not decode is left out.
    """
    views: list[dict[str, Any]] = []
    config = TaskConfig(batch_size=max(1, len(examples)), max_skipped=1.0)
    with evaluating(model, device, bf16=False):
        for batch, pixels in picture_batches(examples, model.config.vision.image_size, config, device):
            seen = model.encode_image(pixels, capture=True)
            assert seen.self_attention is not None
            patches = attention_row(seen.self_attention, 0)[:, 1:]
            captions = [clean_caption(example.captions[0]) if example.captions else "" for example in batch]
            words: list[list[tuple[str, Tensor]]] = [[] for _ in batch]
            if isinstance(model, FusionVLM):
                words = _words(model, tokenizer, seen, captions, max_length)
            views += [
                {
                    "id": example.id,
                    "caption": caption,
                    "image_attention": _grid(attention),
                    "caption_attention": _grid(torch.stack([looks for _, looks in written]).mean(0)) if written else [],
                    "words": [{"token": token, "attention": _grid(looks)} for token, looks in written],
                }
                for example, caption, attention, written in zip(batch, captions, patches, words, strict=True)
            ]
    return views


def _words(
    model: FusionVLM, tokenizer: PreTrainedTokenizerFast, image: Signals, captions: Sequence[str], max_length: int
) -> list[list[tuple[str, Tensor]]]:
    """Each caption's tokens and their attention [patches]; a decoder's is that of the position it writes them from."""
    ids, mask = encode(tokenizer, captions, max_length, image.hidden.device)
    memory = model.image_memory(image)
    writes = model.config.decoder != "none"
    signals = (model.decode if writes else model.fuse)(memory, ids, mask, capture=True)
    assert signals.cross_attention is not None
    lengths = mask.sum(1).tolist()
    words: list[list[tuple[str, Tensor]]] = [[] for _ in captions]
    for position in range(1, max(lengths) - 1):
        attention = attention_row(signals.cross_attention, position - 1 if writes else position)[:, 1:]
        for row, length in enumerate(lengths):
            if position < length - 1:
                words[row].append((str(tokenizer.convert_ids_to_tokens(int(ids[row, position]))), attention[row]))
    return words


def _grid(attention: Tensor) -> list[list[float]]:
    """[patches] -> rows of a square, from the top."""
    side = round(len(attention) ** 0.5)
    return [[round(value, 5) for value in row] for row in attention.view(side, side).tolist()]
