"""Retrieval: the texts of a picture and the picture of a text, among all of a data set (BLIP's and ALBEF's protocol).

Dual encoders rank by the cosine of the embeddings. Fusion models look again at the `k_test` nearest ones: their score
is the matching logit plus the cosine, everything else gets -100. In percent. Scores are float32 whatever the model runs
in: in bfloat16 many would be equal, and a tie counts as a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from limbeck.data.examples import Example
from limbeck.data.transform import clean_caption
from limbeck.evaluation.inputs import (
    Row,
    TaskConfig,
    encode,
    evaluating,
    picture_batches,
    read_rows,
    require_captions,
    write_rows,
)
from limbeck.evaluation.metrics.retrieval import picture_ranks, recalls, text_ranks
from limbeck.losses.contrastive import similarity
from limbeck.models.clip import DualEncoder
from limbeck.models.fusion import FusionVLM, Memory

NOT_LOOKED_AT = -100.0
SHOWN = 5
"""How many of the best finds a row keeps."""


class RetrievalConfig(TaskConfig):
    """How retrieval is evaluated."""

    k_test: int = Field(default=256, ge=0)
    """candidates that the fusion looks at again, per picture and per text: 256 on COCO, 128 on Flickr30k; 0 none"""
    pair_batch: int = Field(default=256, ge=1)
    """picture-text pairs at once"""
    max_length: int = Field(default=35, ge=3)
    """tokens of a text"""
    by_wording: bool = False
    """a text that several pictures have word for word is one text, and right for each of them; the papers' protocol
    takes it for several, each right for one picture alone"""


@dataclass(frozen=True)
class _Gallery:
    """All pictures and texts of a data set, as the model sees them."""

    examples: list[Example]
    texts: list[str]
    columns: list[list[int]]
    """the places of each picture's captions among the texts"""
    ids: Tensor
    """[T, L] of all texts"""
    mask: Tensor
    """[T, L] boolean"""
    own: Tensor
    """[I, T] boolean, True where the text describes the picture"""
    images: Tensor
    """[I, E]"""
    hidden: Tensor
    """[I, N, D] on the CPU, empty unless the model is to look again"""
    embeddings: Tensor
    """[T, E]"""

    def tokens(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask of some texts, as long as the longest of them."""
        mask = self.mask[texts]
        longest = int(mask.sum(1).max())
        return self.ids[texts, :longest], mask[:, :longest]


def evaluate_retrieval(
    model: FusionVLM | DualEncoder,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    config: RetrievalConfig,
    *,
    rows: Path,
    device: torch.device,
    progress: bool = True,
) -> dict[str, float]:
    """Write one row per picture and return TR@1, TR@5, TR@10, IR@1, IR@5, IR@10 and their mean, in percent.

    Raises ValueError where an example has no caption or the model no heads, DataError where too many pictures are
    broken.
    """
    require_captions(examples, "retrieval")
    if isinstance(model, FusionVLM) and not model.config.heads:
        raise ValueError(
            "retrieval: this model has no contrastive and matching heads: load it with a retrieval checkpoint"
        )
    with evaluating(model, device, config.bf16):
        gallery = _embed(model, tokenizer, examples, config, device, progress)
        cosine = similarity(gallery.images, gallery.embeddings)
        for_picture = for_text = cosine
        if isinstance(model, FusionVLM) and config.k_test:
            for_picture, for_text = _look_again(model, gallery, cosine, config, progress)
        write_rows(rows, _rows(gallery, for_picture.cpu(), for_text.cpu()))
    return recompute(rows)


def recompute(rows: Path) -> dict[str, float]:
    """The metrics from the rows alone."""
    read = read_rows(rows)
    return recalls([row["text_rank"] for row in read], [rank for row in read for rank in row["picture_ranks"]])


def _embed(
    model: FusionVLM | DualEncoder,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    config: RetrievalConfig,
    device: torch.device,
    progress: bool,
) -> _Gallery:
    look_again = isinstance(model, FusionVLM) and config.k_test > 0
    kept: list[Example] = []
    images, hidden = [], []
    with tqdm(total=len(examples), desc="retrieval: pictures", unit="picture", disable=not progress) as bar:
        for batch, pixels in picture_batches(examples, model.config.vision.image_size, config, device):
            seen = model.encode_image(pixels)
            kept += batch
            images.append(seen.output)
            if look_again:
                hidden.append((seen.hidden.bfloat16() if config.bf16 else seen.hidden).cpu())
            bar.update(len(batch))
    texts, columns = _texts(kept, config.by_wording)
    own = torch.zeros(len(kept), len(texts), dtype=torch.bool, device=device)
    for row, places in enumerate(columns):
        own[row, places] = True
    ids, mask = encode(tokenizer, [clean_caption(text) for text in texts], config.max_length, device)
    starts = range(0, len(texts), config.pair_batch)
    embeddings = [
        model.encode_text(ids[start : start + config.pair_batch], mask[start : start + config.pair_batch]).output
        for start in tqdm(starts, desc="retrieval: texts", unit="batch", disable=not progress)
    ]
    return _Gallery(
        examples=kept,
        texts=texts,
        columns=columns,
        ids=ids,
        mask=mask,
        own=own,
        images=torch.cat(images),
        hidden=torch.cat(hidden) if hidden else torch.empty(0),
        embeddings=torch.cat(embeddings),
    )


def _texts(examples: Sequence[Example], by_wording: bool) -> tuple[list[str], list[list[int]]]:
    """All captions, those that read the same as one where `by_wording`; and each picture's places among them."""
    texts: list[str] = []
    columns: list[list[int]] = []
    places: dict[str | int, int] = {}
    for example in examples:
        columns.append([])
        for caption in example.captions:
            column = places.setdefault(clean_caption(caption) if by_wording else len(texts), len(texts))
            if column == len(texts):
                texts.append(caption)
            columns[-1].append(column)
    return texts, columns


def _look_again(
    model: FusionVLM,
    gallery: _Gallery,
    cosine: Tensor,
    config: RetrievalConfig,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Scores [I, T] for finding texts and for finding pictures.

    A pair that is near in both directions is looked at once, and a picture's keys and values are made once.
    """
    assert model.text is not None
    assert model.match_head is not None
    near_text = _nearest(cosine, config.k_test, dim=1)
    near_picture = _nearest(cosine, config.k_test, dim=0)
    pairs = (near_text | near_picture).nonzero()
    matched = torch.full_like(cosine, NOT_LOOKED_AT)
    with tqdm(total=len(pairs), desc="retrieval: matching", unit="pair", disable=not progress) as bar:
        for start in range(0, len(gallery.examples), config.batch_size):
            chunk = slice(start, start + config.batch_size)
            memory = Memory(model.text.memory(gallery.hidden[chunk].to(cosine.device)), None)
            inside = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + config.batch_size)]
            for some in inside.split(config.pair_batch):
                picture, text = some.unbind(1)
                first = model.fuse(memory, *gallery.tokens(text), rows=picture - start).hidden[:, 0]
                with torch.autocast(cosine.device.type, enabled=False):
                    logits = model.match_head(first.float())
                matched[picture, text] = logits[:, 1] + cosine[picture, text]
                bar.update(len(some))
    nothing = torch.full_like(cosine, NOT_LOOKED_AT)
    return torch.where(near_text, matched, nothing), torch.where(near_picture, matched, nothing)


def _nearest(cosine: Tensor, k: int, dim: int) -> Tensor:
    """[I, T] boolean, True for the k largest along `dim`."""
    best = cosine.topk(min(k, cosine.shape[dim]), dim=dim).indices
    return torch.zeros_like(cosine, dtype=torch.bool).scatter_(dim, best, True)


def _rows(gallery: _Gallery, for_picture: Tensor, for_text: Tensor) -> list[Row]:
    """What is kept of each picture: ranks counted from 0, and what was found."""
    own = gallery.own.cpu()
    owner = own.int().argmax(0).tolist()
    texts_found = text_ranks(for_picture, own).tolist()
    pairs = map(tuple, own.nonzero().tolist())
    pictures_found = dict(zip(pairs, picture_ranks(for_text, own).tolist(), strict=True))
    best_texts = for_picture.topk(min(SHOWN, for_picture.shape[1]), dim=1)
    best_pictures = for_text.topk(min(SHOWN, for_text.shape[0]), dim=0)
    rows = []
    for index, (example, mine) in enumerate(zip(gallery.examples, gallery.columns, strict=True)):
        texts = zip(best_texts.indices[index].tolist(), best_texts.values[index].tolist(), strict=True)
        rows.append(
            {
                "id": example.id,
                "captions": list(example.captions),
                "text_rank": texts_found[index],
                "picture_ranks": [pictures_found[index, text] for text in mine],
                "texts": [
                    {
                        "text": gallery.texts[text],
                        "id": gallery.examples[index if own[index, text] else owner[text]].id,
                        "score": round(score, 6),
                    }
                    for text, score in texts
                ],
                "pictures": [
                    [gallery.examples[picture].id for picture in best_pictures.indices[:, text].tolist()]
                    for text in mine
                ],
            }
        )
    return rows
