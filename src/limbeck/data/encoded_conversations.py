"""Conversations encoded once, at the start, so that what does not fit is known before anything trains."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from pydantic import Field
from tqdm import tqdm

from limbeck.config import Section
from limbeck.data.answer_spans import Encoded, Unfit
from limbeck.data.conversations import Conversation, ConversationSource, group_starts
from limbeck.data.decoder_tokenizer import DecoderIds
from limbeck.data.encoding import Ragged
from limbeck.data.examples import DataError, Skipped, check_skipped, number_of

CHUNK = 1024
"""Conversations that are encoded at once."""


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
    """widen a picture to a square with the mean colour, as LLaVA-1.5 does, instead of squeezing it"""
    cache: bool = False
    """keep every picture in memory, size x size x 3 bytes each; only where the transform leaves nothing to chance"""


class Writer(Protocol):
    """What turns a conversation into tokens: `Chat` and `ModelChat`."""

    ids: DecoderIds
    stop_id: int

    def encode(self, conversations: list[Conversation]) -> list[Encoded | Unfit]: ...
    def text(self, conversation: Conversation) -> str: ...


@dataclass(frozen=True)
class Limit:
    """What a model can read of a conversation."""

    name: str
    """what it is called in a reason, such as: the tiny model's positions"""
    tokens: int
    extra: Callable[[Encoded], int]
    """how many tokens more than `ids` the model reads of a conversation with a picture"""


class EncodedConversations:
    """The conversations of a source that fit, by row; of each group an epoch draws one.

    `picture_tokens` is the least that a picture can be widened to. `left_out` lists what is too long even so, is past
    one of the `limits`, or does not fit the template. Raises DataError where too much is left out.
    """

    def __init__(
        self,
        source: ConversationSource,
        chat: Writer,
        picture_tokens: int,
        config: DialoguesConfig,
        seed: int,
        limits: Sequence[Limit] = (),
    ) -> None:
        self.source, self.chat, self.config, self.seed, self.limits = source, chat, config, seed, limits
        self.left_out = self._encode(picture_tokens)
        total = len(source.conversations)
        check_skipped(self.left_out, total, config.max_left_out, f"{source.name}, max_left_out")
        if not len(self._kept):
            raise DataError(f"{source.name}: not one of {total} conversations can be used:\n  {self.left_out[0]}")

    def __len__(self) -> int:
        """Groups: items of one epoch."""
        return len(self._groups) - 1

    @property
    def rows(self) -> int:
        """Conversations that fit."""
        return len(self._kept)

    def draw(self, index: int, epoch: int) -> tuple[int, random.Random]:
        """The row that item `index` is in an epoch, and the chance from which the rest of that item is drawn."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        first, end = self._groups[index : index + 2]
        return int(first) + int(rng.random() * int(end - first)), rng

    def lengths(self, epoch: int) -> list[int]:
        """Tokens of every item as an epoch draws it, the picture as one of them."""
        return [len(self._stored[self.draw(index, epoch)[0]]) for index in range(len(self))]

    def conversation(self, row: int) -> Conversation:
        """What a row encodes."""
        return self.source.conversations[int(self._kept[row])]

    def encoded(self, row: int) -> Encoded:
        """The whole conversation as tokens, the picture as one of them."""
        stored = self._stored[row]
        supervised = stored < 0
        return Encoded(ids=np.where(supervised, ~stored, stored), supervised=supervised, ends=self._ends[row])

    @property
    def image_ids(self) -> np.ndarray:
        """int64 [rows], equal for two rows exactly where they show the same picture"""
        return self._image_ids

    def image_id(self, row: int) -> int:
        """Equal for two rows exactly where they show the same picture."""
        return int(self._image_ids[row])

    def fingerprint(self, settings: str) -> str:
        """A hash of every picture's name, token and label and of the settings: equal for equal data, on any machine."""
        given = f"{self._hash}{self.config.model_dump_json()}{self.seed}{settings}"
        return hashlib.sha256(given.encode()).hexdigest()[:16]

    def _encode(self, picture_tokens: int) -> list[Skipped]:
        """Encode every conversation and keep what fits. Returns what does not.

        Supervised tokens are stored as ~id, which is negative.
        """
        conversations = self.source.conversations
        left_out, kept, rows, ends, image_ids, digest = [], [], [], [], [], hashlib.sha256()
        starts = range(0, len(conversations), CHUNK)
        for start in tqdm(starts, desc=f"reading {self.source.name}", disable=len(starts) < 5):
            chunk = list(conversations[start : start + CHUNK])
            for number, (conversation, encoded) in enumerate(zip(chunk, self.chat.encode(chunk), strict=True), start):
                reason = self._unfit(conversation, encoded, picture_tokens)
                if isinstance(encoded, Unfit) or reason is not None:
                    left_out.append(Skipped(conversation.id, str(reason)))
                    continue
                image = conversation.image
                kept.append(number)
                rows.append(np.where(encoded.supervised, ~encoded.ids, encoded.ids))
                ends.append(np.asarray(encoded.ends, np.int32))
                image_ids.append(number_of(image.key if image else f"no picture, {conversation.id}"))
                digest.update(repr((conversation.id, image and image.key)).encode() + rows[-1].tobytes())
        self._kept = np.asarray(kept, np.int64)
        self._stored, self._ends = _ragged(rows), _ragged(ends)
        self._image_ids = np.asarray(image_ids, np.int64)
        self._groups = np.unique(np.searchsorted(self._kept, group_starts(self.source)))
        digest.update(self._groups.tobytes())
        self._hash = digest.hexdigest()
        return left_out

    def _unfit(self, conversation: Conversation, encoded: Encoded | Unfit, picture_tokens: int) -> Unfit | None:
        """Why a conversation cannot be used, None where it can."""
        if isinstance(encoded, Unfit):
            return encoded
        if self.config.needs_image and conversation.image is None:
            return Unfit("no picture")
        extra = picture_tokens - 1 if conversation.image else 0
        limits = self.limits if conversation.image else ()
        if kept_length(encoded, extra, self.config, limits):
            return None
        return too_long(encoded, extra, self.config, limits)


def kept_length(encoded: Encoded, extra: int, config: DialoguesConfig, limits: Sequence[Limit] = ()) -> int:
    """How many of the tokens are kept if the picture takes `extra` more; 0: the conversation cannot be used."""
    room = min([config.max_length - extra, *(limit.tokens - limit.extra(encoded) for limit in limits)])
    if len(encoded.ids) <= room:
        return len(encoded.ids)
    fitting = encoded.ends[encoded.ends <= room]
    return int(fitting[-1]) if config.too_long == "cut" and len(fitting) else 0


def too_long(encoded: Encoded, extra: int, config: DialoguesConfig, limits: Sequence[Limit] = ()) -> Unfit:
    """The reason why it cannot."""
    for limit in limits:
        length = len(encoded.ids) + limit.extra(encoded)
        if length > limit.tokens:
            return Unfit(f"{length} tokens, more than {limit.name}, {limit.tokens}")
    return Unfit(f"{len(encoded.ids) + extra} tokens, more than max_length {config.max_length}")


def _ragged(rows: list[np.ndarray]) -> Ragged:
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    return Ragged(flat, np.cumsum([0, *map(len, rows)]))
