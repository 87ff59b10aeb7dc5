"""Dialogues: a map-style torch dataset over conversations, and how its items become a batch.

Every conversation is encoded once, at the start, so that what does not fit is known before anything trains. As with
`Pairs`, what item `(index, epoch)` gives depends on nothing else but the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, NotRequired

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from limbeck.config import Section
from limbeck.data.chat import Chat, Encoded, Unfit, widened
from limbeck.data.conversations import Conversation, ConversationSource, group_starts
from limbeck.data.dataset import normalize
from limbeck.data.encoding import Ragged
from limbeck.data.examples import BrokenImage, DataError, Skipped, check_skipped, number_of
from limbeck.data.transform import MEAN, TransformConfig, transform
from limbeck.types import IGNORE, ConversationBatch

CHUNK = 1024
"""Conversations that are encoded at once."""
BORDER = tuple(int(255 * mean) for mean in MEAN)
"""Fills the sides of a picture that is padded to a square."""


class DialoguesConfig(Section):
    """What a dataset makes of each conversation."""

    max_length: int = Field(default=2048, ge=8)
    """tokens of a conversation, the picture's included"""
    too_long: Literal["skip", "cut"] = "skip"
    """a longer conversation is left out, or loses its last exchanges"""
    needs_image: bool = False
    """leave out what has no picture"""
    max_left_out: float = Field(default=0.1, ge=0, le=1)
    """share of conversations left out for these reasons past which loading stops"""
    pad_to_square: bool = False
    """widen a picture to a square with CLIP's mean colour, as LLaVA-1.5 does, instead of squeezing it"""
    cache: bool = False
    """keep every picture in memory, size x size x 3 bytes each; only where the transform leaves nothing to chance"""


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


class Dialogues(Dataset[Dialogue | Skipped]):
    """Encoded conversations by index or (index, epoch); of a group each epoch draws one.

    `left_out` lists what was too long or did not fit the template. An item whose picture does not decode is a
    `Skipped`; `collate` puts another in its place and reports it. Raises DataError where too much is left out.
    """

    def __init__(
        self,
        source: ConversationSource,
        chat: Chat,
        transform: TransformConfig,
        image_tokens: int,
        config: DialoguesConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.chat = chat
        self.transform = transform
        self.image_tokens = image_tokens
        self.config = config or DialoguesConfig()
        self.seed = seed
        if self.config.cache and not transform.is_deterministic:
            raise DataError("cache: true keeps finished pictures, so crop, flip and randaugment must be off")
        self.left_out = self._encode()
        total = len(source.conversations)
        check_skipped(self.left_out, total, self.config.max_left_out, f"{source.name}, max_left_out")
        if not len(self._kept):
            raise DataError(f"{source.name}: not one of {total} conversations can be used:\n  {self.left_out[0]}")
        self.collate = DialogueCollator(pad=chat.ids.pad, size=transform.size)
        self._images: np.ndarray | None = None
        self._broken: dict[int, Skipped] = {}
        if self.config.cache:
            self._fill_cache()

    def __len__(self) -> int:
        return len(self._groups) - 1

    def __getitem__(self, key: int | tuple[int, int]) -> Dialogue | Skipped:
        index, epoch = (key, 0) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        first, end = self._groups[index : index + 2]
        row = int(first) + int(rng.random() * int(end - first))
        image = self._image(row, rng)
        if isinstance(image, Skipped):
            return image
        stored = self._stored[row]
        supervised = stored < 0
        ids, labels = widened(np.where(supervised, ~stored, stored), supervised, self.chat.ids.image, self.image_tokens)
        return Dialogue(image=image, image_id=int(self._image_ids[row]), ids=ids, labels=labels)

    def fingerprint(self) -> str:
        """A hash of every picture's name, token and label and of the settings: equal for equal data, on any machine."""
        settings = f"{self.config.model_dump_json()}{self.transform.model_dump_json()}{self.seed}{self.image_tokens}"
        return hashlib.sha256(f"{self._hash}{settings}".encode()).hexdigest()[:16]

    def _encode(self) -> list[Skipped]:
        """Encode every conversation and keep what fits. Returns what does not.

        Supervised tokens are stored as ~id, which is negative.
        """
        conversations = self.source.conversations
        left_out, kept, rows, image_ids, digest = [], [], [], [], hashlib.sha256()
        starts = range(0, len(conversations), CHUNK)
        for start in tqdm(starts, desc=f"reading {self.source.name}", disable=len(starts) < 5):
            chunk = conversations[start : start + CHUNK]
            for number, (conversation, encoded) in enumerate(zip(chunk, self.chat.encode(chunk), strict=True), start):
                fitted = self._fitted(conversation, encoded)
                if isinstance(fitted, Unfit):
                    left_out.append(Skipped(conversation.id, str(fitted)))
                    continue
                image = conversation.image
                kept.append(number)
                rows.append(np.where(fitted.supervised, ~fitted.ids, fitted.ids))
                image_ids.append(number_of(image.key if image else f"no picture, {conversation.id}"))
                digest.update(repr((conversation.id, image and image.key)).encode() + rows[-1].tobytes())
        self._kept = np.asarray(kept, np.int64)
        flat = np.concatenate(rows) if rows else np.zeros(0, np.int32)
        self._stored = Ragged(flat, np.cumsum([0, *map(len, rows)]))
        self._image_ids = np.asarray(image_ids, np.int64)
        groups = np.searchsorted(self._kept, group_starts(self.source))
        self._groups = np.unique(groups)
        digest.update(self._groups.tobytes())
        self._hash = digest.hexdigest()
        return left_out

    def _fitted(self, conversation: Conversation, encoded: Encoded | Unfit) -> Encoded | Unfit:
        """The conversation within the settings' bounds, or why it cannot be."""
        if isinstance(encoded, Unfit):
            return encoded
        if self.config.needs_image and conversation.image is None:
            return Unfit("no picture")
        room = self.config.max_length - (self.image_tokens - 1 if conversation.image else 0)
        if len(encoded.ids) <= room:
            return encoded
        fitting = encoded.ends[encoded.ends <= room]
        if self.config.too_long == "cut" and len(fitting):
            end = int(fitting[-1])
            return Encoded(ids=encoded.ids[:end], supervised=encoded.supervised[:end], ends=fitting)
        length = len(encoded.ids) + self.config.max_length - room
        return Unfit(f"{length} tokens, more than max_length {self.config.max_length}")

    def _fill_cache(self) -> None:
        """Decode each picture once."""
        first_rows = {int(number): row for row, number in reversed(list(enumerate(self._image_ids)))}
        slots = {number: slot for slot, number in enumerate(first_rows)}
        images = np.zeros((len(slots), 3, self.transform.size, self.transform.size), np.uint8)
        for number, row in tqdm(first_rows.items(), desc=f"decoding {self.source.name}", unit="picture"):
            image = self._image(row, random.Random(0))
            if isinstance(image, Skipped):
                self._broken[slots[number]] = image
            elif image is not None:
                images[slots[number]] = image
        self._slots = np.asarray([slots[int(number)] for number in self._image_ids])
        self._images = images

    def _image(self, row: int, rng: random.Random) -> np.ndarray | Skipped | None:
        """The finished picture of a kept conversation, None where it has none."""
        if self.chat.ids.image not in self._stored[row]:
            return None
        if self._images is not None:
            slot = int(self._slots[row])
            return self._broken[slot] if slot in self._broken else self._images[slot]
        conversation = self.source.conversations[int(self._kept[row])]
        assert conversation.image is not None
        try:
            image = conversation.image.open()
        except BrokenImage as error:
            return Skipped(id=conversation.id, reason=str(error))
        return transform(padded_to_square(image) if self.config.pad_to_square else image, self.transform, rng)


@dataclass(frozen=True)
class DialogueCollator:
    """Items to a batch: pads to the longest, normalises pictures, leaves out what is broken and reports it.

    Another item of the batch takes a broken one's place, so that every process brings equally many rows.
    """

    pad: int
    size: int
    """pixels a side"""

    def __call__(self, items: Sequence[Dialogue | Skipped]) -> LoadedConversations:
        """The batch. Raises DataError where not one picture of it decodes."""
        skipped = [item for item in items if isinstance(item, Skipped)]
        whole = [item for item in items if isinstance(item, Dialogue)]
        if not whole:
            raise DataError("not one picture of a batch decodes:\n" + "\n".join(f"  {item}" for item in skipped[:10]))
        spare = cycle(whole)
        kept = [item if isinstance(item, Dialogue) else next(spare) for item in items]
        lengths = np.array([len(item.ids) for item in kept])
        mask = np.arange(lengths.max()) < lengths[:, None]
        has_image = torch.tensor([item.image is not None for item in kept])
        blank = np.zeros((3, self.size, self.size), np.uint8)
        pictures = torch.from_numpy(np.stack([blank if item.image is None else item.image for item in kept]))
        batch = LoadedConversations(
            pixel_values=normalize(pictures).mul_(has_image.view(-1, 1, 1, 1)),
            input_ids=_filled([item.ids for item in kept], mask, self.pad),
            attention_mask=torch.from_numpy(mask),
            labels=_filled([item.labels for item in kept], mask, IGNORE),
            image_id=torch.tensor([item.image_id for item in kept]),
            has_image=has_image,
        )
        if skipped:
            batch["skipped"] = skipped
        return batch


def padded_to_square(image: Image.Image) -> Image.Image:
    """The whole picture in the middle of a square of CLIP's mean colour (LLaVA's expand2square)."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), BORDER)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _filled(rows: Sequence[np.ndarray], mask: np.ndarray, filler: int) -> Tensor:
    """Rows int64 [B, longest] with `filler` behind them."""
    result = np.full(mask.shape, filler, np.int64)
    result[mask] = np.concatenate(rows)
    return torch.from_numpy(result)
