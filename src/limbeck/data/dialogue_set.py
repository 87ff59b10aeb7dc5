"""Dialogues: a map-style torch dataset over conversations, and how its items become a batch.

Every conversation is encoded once, at the start, so that what does not fit is known before anything trains. As with
`Pairs`, what item `(index, epoch)` gives depends on nothing else but the seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NotRequired

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from limbeck.data.answer_spans import widened
from limbeck.data.chat import Chat
from limbeck.data.conversations import ConversationSource
from limbeck.data.dataset import normalize
from limbeck.data.encoded_conversations import DialoguesConfig, EncodedConversations, Limit, kept_length
from limbeck.data.examples import BrokenImage, DataError, Skipped
from limbeck.data.normalization import CLIP, Normalization
from limbeck.data.substitutes import whole_item
from limbeck.data.transform import TransformConfig, transform
from limbeck.types import IGNORE, ConversationBatch


class LoadedConversations(ConversationBatch):
    """A batch, and what had to be left out of it."""

    skipped: NotRequired[list[Skipped]]


@dataclass(frozen=True)
class Dialogue:
    """One encoded conversation."""

    image: np.ndarray | None
    """uint8 [3, R, R]"""
    image_id: int
    ids: np.ndarray
    """int64 [T]"""
    labels: np.ndarray
    """int64 [T], shifted"""
    draws: tuple[float, float]
    """uniform in [0, 1), for the wrong text and the wrong picture of matching"""
    skipped: tuple[Skipped, ...] = ()
    """what was broken where this item stands in its place"""


class Dialogues(Dataset[Dialogue]):
    """Encoded conversations by index or (index, epoch); of a group each epoch draws one.

    `left_out` lists what was too long, for the models' `limits` too, or did not fit the template. Another item, drawn
    by seed, epoch and index, takes the place of one whose picture does not decode, and carries it along as `skipped`.
    `pictures` False opens none: the texts still have their places, and the batch is blank there. Raises DataError where
    too much is left out.
    """

    def __init__(
        self,
        source: ConversationSource,
        chat: Chat,
        transform: TransformConfig,
        image_tokens: int,
        config: DialoguesConfig | None = None,
        seed: int = 0,
        limits: Sequence[Limit] = (),
        normalization: Normalization = CLIP,
        pictures: bool = True,
    ) -> None:
        self.source = source
        self.chat = chat
        self.transform = transform
        self.image_tokens = image_tokens
        self.normalization = normalization
        self.pictures = pictures
        self.config = config or DialoguesConfig()
        if self.config.cache and not transform.is_deterministic:
            raise DataError("cache: true keeps finished pictures, so crop, flip and randaugment must be off")
        self.rows = EncodedConversations(source, chat, image_tokens, self.config, seed, limits)
        self.left_out = self.rows.left_out
        self.collate = DialogueCollator(pad=chat.ids.pad, size=transform.size, normalization=normalization)
        self._images: np.ndarray | None = None
        self._broken: dict[int, Skipped] = {}
        if self.config.cache and pictures:
            self._fill_cache()

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, epoch: int) -> list[int]:
        """About how long every item of an epoch is, for an order by length."""
        return self.rows.lengths(epoch)

    def __getitem__(self, key: int | tuple[int, int]) -> Dialogue:
        index, epoch = (key, 0) if isinstance(key, int) else key
        chance = f"{self.rows.seed}/{epoch}/{index}"
        item, skipped = whole_item(lambda each: self._item(each, epoch), index, len(self), chance)
        return replace(item, skipped=skipped) if skipped else item

    def _item(self, index: int, epoch: int) -> Dialogue | Skipped:
        row, rng = self.rows.draw(index, epoch)
        encoded = self.rows.encoded(row)
        image = self._image(row, rng)
        if isinstance(image, Skipped):
            return image
        extra, limits = (self.image_tokens - 1, self.rows.limits) if self._has_image(row) else (0, ())
        length = kept_length(encoded, extra, self.config, limits)
        kept, supervised = encoded.ids[:length], encoded.supervised[:length]
        ids, labels = widened(kept, supervised, self.chat.ids.image, self.image_tokens)
        chance = random.Random(f"{self.rows.seed}/{epoch}/{index}/negatives")
        draws = (chance.random(), chance.random())
        return Dialogue(image=image, image_id=self.rows.image_id(row), ids=ids, labels=labels, draws=draws)

    def fingerprint(self) -> str:
        """A hash of every picture's name, token and label and of the settings: equal for equal data, on any machine."""
        return self.rows.fingerprint(f"{self.transform.model_dump_json()}{self.image_tokens}")

    def _fill_cache(self) -> None:
        """Decode each picture once."""
        first_rows = {int(number): row for row, number in reversed(list(enumerate(self.rows.image_ids)))}
        slots = {number: slot for slot, number in enumerate(first_rows)}
        images = np.zeros((len(slots), 3, self.transform.size, self.transform.size), np.uint8)
        for number, row in tqdm(first_rows.items(), desc=f"decoding {self.source.name}", unit="picture"):
            image = self._image(row, random.Random(0))
            if isinstance(image, Skipped):
                self._broken[slots[number]] = image
            elif image is not None:
                images[slots[number]] = image
        self._slots = np.asarray([slots[int(number)] for number in self.rows.image_ids])
        self._images = images

    def _has_image(self, row: int) -> bool:
        return self.chat.ids.image in self.rows.encoded(row).ids

    def _image(self, row: int, rng: random.Random) -> np.ndarray | Skipped | None:
        """The finished picture of a kept conversation, None where it has none or none is wanted."""
        if not self.pictures or not self._has_image(row):
            return None
        if self._images is not None:
            slot = int(self._slots[row])
            return self._broken[slot] if slot in self._broken else self._images[slot]
        conversation = self.rows.conversation(row)
        assert conversation.image is not None
        try:
            image = conversation.image.open()
        except BrokenImage as error:
            return Skipped(id=conversation.id, reason=str(error))
        if self.config.pad_to_square:
            image = padded_to_square(image, self.normalization.border)
        return transform(image, self.transform, rng)


@dataclass(frozen=True)
class DialogueCollator:
    """Items to a batch: pads to the longest, normalises pictures, reports what was broken."""

    pad: int
    size: int
    """pixels a side"""
    normalization: Normalization = CLIP

    def __call__(self, items: Sequence[Dialogue]) -> LoadedConversations:
        lengths = np.array([len(item.ids) for item in items])
        mask = np.arange(lengths.max()) < lengths[:, None]
        has_image = torch.tensor([item.image is not None for item in items])
        blank = np.zeros((3, self.size, self.size), np.uint8)
        pictures = torch.from_numpy(np.stack([blank if item.image is None else item.image for item in items]))
        batch = LoadedConversations(
            pixel_values=normalize(pictures, self.normalization).mul_(has_image.view(-1, 1, 1, 1)),
            input_ids=_filled([item.ids for item in items], mask, self.pad),
            attention_mask=torch.from_numpy(mask),
            labels=_filled([item.labels for item in items], mask, IGNORE),
            image_id=torch.tensor([item.image_id for item in items]),
            has_image=has_image,
            draws=torch.tensor([item.draws for item in items], dtype=torch.float32),
        )
        if skipped := [entry for item in items for entry in item.skipped]:
            batch["skipped"] = skipped
        return batch


def padded_to_square(image: Image.Image, border: tuple[int, ...] = CLIP.border) -> Image.Image:
    """The whole picture in the middle of a square of another colour, CLIP's mean by default (LLaVA's expand2square)."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), border)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _filled(rows: Sequence[np.ndarray], mask: np.ndarray, filler: int) -> Tensor:
    """Rows int64 [B, longest] with `filler` behind them."""
    result = np.full(mask.shape, filler, np.int64)
    result[mask] = np.concatenate(rows)
    return torch.from_numpy(result)
