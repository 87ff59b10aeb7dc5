"""Dialogues prepared by a model's own processor, whatever tensors it makes of a picture.

The text is encoded as for `Dialogues`, which says what the model has to answer. The processor is then given text and
picture: its tokens must be those of the text, but for the picture's one, in whose place stands what the processor
widens it to. So the answers' places are known for every processor that widens a picture's token in place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import ProcessorMixin

from limbeck.data.answer_spans import Encoded
from limbeck.data.conversations import ConversationSource
from limbeck.data.encoded_conversations import DialoguesConfig, EncodedConversations, Writer, kept_length, too_long
from limbeck.data.examples import BrokenImage, DataError, Skipped
from limbeck.data.model_chat import adds_special_tokens, image_token_id
from limbeck.data.substitutes import whole_item
from limbeck.types import IGNORE

TEXT_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""What a processor makes of a text; the rest is the picture's."""
_PLAIN = ("input_ids", "attention_mask")
_INCIDENTAL = ("transformers_version", "_name_or_path")
"""Settings of a processor that change nothing in its tensors."""
_PROBES = ((48, 48), (300, 100), (640, 480))
"""Pictures of these sizes show whether all pictures become equally many tokens."""


@dataclass(frozen=True)
class Picture:
    """What the processor makes of one picture."""

    expansion: dict[str, np.ndarray]
    """int64 [N], by text key: ids in place of the picture's token, and other kinds of numbers for each of them"""
    tensors: dict[str, Tensor]
    """pixel_values and whatever else goes to the model"""


@dataclass(frozen=True)
class ProcessedDialogue:
    """One encoded conversation."""

    picture: Picture | None
    image_id: int
    texts: dict[str, np.ndarray]
    """int64 [T], by text key"""
    labels: np.ndarray
    """int64 [T], shifted"""
    skipped: tuple[Skipped, ...] = ()
    """what could not be used where this item stands in its place"""


class ProcessedDialogues(Dataset[ProcessedDialogue]):
    """Conversations by index or (index, epoch), as a processor prepares them; of a group each epoch draws one.

    `chat` writes the text: `ModelChat(processor)`, or `Chat(processor.tokenizer)` where the picture's token is
    `<image>`. `left_out` lists what did not fit. Where a processor makes pictures of different sizes into different
    numbers of tokens, whether a conversation is too long shows when its picture is opened. Another item, drawn by seed,
    epoch and index, takes the place of such a one, or of one whose picture does not decode, and carries it along as
    `skipped`. With `cache` every picture's tensors are kept in memory. Raises DataError where too much is left out or
    chat and processor differ.
    """

    def __init__(
        self,
        source: ConversationSource,
        chat: Writer,
        processor: ProcessorMixin,
        config: DialoguesConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.chat, self.processor = chat, processor
        self.config = config or DialoguesConfig()
        self._settings = processor.image_processor.to_dict()
        if self.config.pad_to_square and not self._settings.get("do_pad"):
            raise DataError(
                f"pad_to_square: true, but the pictures are prepared by the model's own {type(processor).__name__}, "
                "which does not (its do_pad)"
            )
        image = image_token_id(processor)
        if image != chat.ids.image:
            raise DataError(
                f"{type(processor).__name__} puts pictures in the place of token {image}, the chat "
                f"template writes token {chat.ids.image}; use the model's own template (chat: null)"
            )
        fewest, most = picture_tokens(processor, image)
        least = fewest if fewest == most else 1  # some picture may become fewer than those that were tried
        self.rows = EncodedConversations(source, chat, least, self.config, seed)
        self.source, self.left_out = source, self.rows.left_out
        self.collate = ProcessedCollator(pad=chat.ids.pad)
        self._cache: dict[int, Picture | Skipped] = {}
        if self.config.cache:
            for row in tqdm(range(self.rows.rows), desc=f"preparing pictures of {source.name}", disable=None):
                image_id = self.rows.image_id(row)
                if image_id not in self._cache:
                    self._cache[image_id] = cast(Any, self._picture(row, self.rows.encoded(row)))

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, epoch: int) -> list[int]:
        """About how long every item of an epoch is, for an order by length."""
        return self.rows.lengths(epoch)

    def __getitem__(self, key: int | tuple[int, int]) -> ProcessedDialogue:
        index, epoch = (key, 0) if isinstance(key, int) else key
        chance = f"{self.rows.seed}/{epoch}/{index}"
        item, skipped = whole_item(lambda each: self._item(each, epoch), index, len(self), chance)
        return replace(item, skipped=skipped) if skipped else item

    def _item(self, index: int, epoch: int) -> ProcessedDialogue | Skipped:
        row, _ = self.rows.draw(index, epoch)
        encoded = self.rows.encoded(row)
        picture = self._cache[self.rows.image_id(row)] if self.config.cache else self._picture(row, encoded)
        if isinstance(picture, Skipped):
            return picture
        extra = len(picture.expansion["input_ids"]) - 1 if picture else 0
        length = kept_length(encoded, extra, self.config)
        if not length:
            return Skipped(self.rows.conversation(row).id, str(too_long(encoded, extra, self.config)))
        texts, labels = _widened(encoded, length, self.chat.ids.image, picture)
        return ProcessedDialogue(picture=picture, image_id=self.rows.image_id(row), texts=texts, labels=labels)

    def fingerprint(self) -> str:
        """A hash of every picture's name, token and label and of the settings: equal for equal data, on any machine."""
        kept = {name: value for name, value in self._settings.items() if name not in _INCIDENTAL}
        return self.rows.fingerprint(json.dumps(kept, sort_keys=True, default=str))

    def _picture(self, row: int, encoded: Encoded) -> Picture | Skipped | None:
        """The picture of a row by the processor, None where it has none. Raises DataError where their tokens differ."""
        conversation = self.rows.conversation(row)
        if conversation.image is None:
            return None
        try:
            image = conversation.image.open()
        except BrokenImage as error:
            return Skipped(id=conversation.id, reason=str(error))
        made = _process(self.processor, self.chat.text(conversation), image)
        texts = {name: made[name][0].numpy() for name in TEXT_KEYS if name in made}
        start, end = expanded(encoded.ids, texts["input_ids"], self.chat.ids.image, type(self.processor).__name__)
        outside = {name: np.delete(x, slice(start, end)) for name, x in texts.items() if name not in _PLAIN}
        for name, values in outside.items():
            if values.any():
                raise DataError(f"{type(self.processor).__name__}: {name} is not 0 outside of pictures")
        tensors = {name: x for name, x in made.items() if name not in TEXT_KEYS}
        strange = [name for name, x in tensors.items() if not isinstance(x, Tensor)]
        if strange:
            raise DataError(
                f"{type(self.processor).__name__} makes {', '.join(strange)} of a picture, which are no tensors"
            )
        return Picture(expansion={name: x[start:end] for name, x in texts.items()}, tensors=tensors)


@dataclass(frozen=True)
class ProcessedCollator:
    """Items to a batch as the processor itself would make it, with shifted labels; texts are padded on the right."""

    pad: int

    def __call__(self, items: Sequence[ProcessedDialogue]) -> dict[str, Any]:
        names = dict.fromkeys(name for item in items for name in item.texts)
        length = max(len(item.labels) for item in items)
        batch: dict[str, Any] = {}
        for name in names:
            rows = [item.texts.get(name, np.zeros(len(item.labels), np.int64)) for item in items]
            batch[name] = _filled(rows, length, self.pad if name == "input_ids" else 0)
        pictures = [item.picture.tensors for item in items if item.picture]
        for name in dict.fromkeys(name for tensors in pictures for name in tensors):
            batch[name] = _joined([tensors[name] for tensors in pictures])
        batch["labels"] = _filled([item.labels for item in items], length, IGNORE)
        batch["image_id"] = torch.tensor([item.image_id for item in items])
        if skipped := [entry for item in items for entry in item.skipped]:
            batch["skipped"] = skipped
        return batch


def picture_tokens(processor: ProcessorMixin, image: int) -> tuple[int, int]:
    """The fewest and the most tokens that stand for the token `image` when pictures of different sizes replace it."""
    tokenizer = processor.tokenizer
    token = tokenizer.convert_ids_to_tokens(image)
    made = [_process(processor, token, Image.new("RGB", size))["input_ids"][0] for size in _PROBES]
    found = {len(ids) - len(tokenizer(token).input_ids) + 1 for ids in made}
    return min(found), max(found)


def expanded(plain: np.ndarray, processed: np.ndarray, image: int, processor: str) -> tuple[int, int]:
    """Where in the processor's ids [S] stands what it has widened the picture's token of the text's ids [T] to.

    Raises DataError unless the ids are the same before and behind it.
    """
    [place] = np.flatnonzero(plain == image)
    behind = len(plain) - int(place) - 1
    end = len(processed) - behind
    same = end > place and np.array_equal(processed[:place], plain[:place])
    if not same or not np.array_equal(processed[end:], plain[place + 1 :]):
        raise DataError(
            f"{processor} makes {len(processed)} tokens of a text with a picture that differ from the text's own "
            f"{len(plain)} in more than the picture's place, {int(place)}; its answers cannot be found in them"
        )
    return int(place), end


def _process(processor: ProcessorMixin, text: str, image: Image.Image) -> dict[str, Any]:
    """What the processor makes of a text and its picture."""
    given = cast(Any, processor)(
        text=[text],
        images=[[image]],
        add_special_tokens=adds_special_tokens(processor.tokenizer, text),
        return_tensors="pt",
    )
    return dict(given)


def _widened(
    encoded: Encoded, length: int, image: int, picture: Picture | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The first `length` tokens with the picture's in its place, by text key, and shifted labels [T]."""
    ids, supervised = encoded.ids[:length].astype(np.int64), encoded.supervised[:length]
    texts = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if picture is not None:
        [place] = np.flatnonzero(ids == image)
        count = len(picture.expansion["input_ids"])
        base = {name: texts.get(name, np.zeros_like(ids)) for name in picture.expansion}
        texts = {name: np.concatenate([x[:place], picture.expansion[name], x[place + 1 :]]) for name, x in base.items()}
        supervised = np.concatenate([supervised[:place], np.zeros(count, bool), supervised[place + 1 :]])
    labels = np.full(len(supervised), IGNORE, np.int64)
    labels[:-1] = np.where(supervised[1:], texts["input_ids"][1:], IGNORE)
    return texts, labels


def _filled(rows: Sequence[np.ndarray], length: int, filler: int) -> Tensor:
    """Rows int64 [B, length] with `filler` behind them."""
    result = np.full((len(rows), length), filler, np.int64)
    for place, row in enumerate(rows):
        result[place, : len(row)] = row
    return torch.from_numpy(result)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One after the other; where they differ in another dimension, zeros behind the shorter."""
    shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in tensors), strict=True)]
    padded = []
    for x in tensors:
        missing = [size - own for size, own in zip(shape, x.shape[1:], strict=True)]
        padding = [amount for extra in reversed(missing) for amount in (0, extra)]
        padded.append(functional.pad(x, padding) if any(missing) else x)
    return torch.cat(padded)
