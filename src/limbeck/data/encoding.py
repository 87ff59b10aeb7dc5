"""Many texts to token ids, kept in flat arrays: four million captions take a few hundred megabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from limbeck.data.examples import Example
from limbeck.data.tokenizer import SpecialIds
from limbeck.data.transform import clean_answer, clean_caption

CHUNK = 4096
"""Texts that are encoded at once."""


class Ragged:
    """Rows of different length in one flat array."""

    def __init__(self, flat: np.ndarray, starts: np.ndarray) -> None:
        self.flat = flat
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.starts[index] : self.starts[index + 1]]


class Encoder:
    """Collects texts and encodes them many at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._sep = SpecialIds.of(tokenizer).sep
        self._max_length = max_length
        self._waiting: list[str] = []
        self._rows: list[np.ndarray] = []
        self._lengths = [0]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, texts: Sequence[str]) -> None:
        """Take more texts."""
        self._count += len(texts)
        self._waiting += texts
        if len(self._waiting) >= CHUNK:
            self._encode()

    def done(self) -> Ragged:
        """Every text's ids, [CLS] first and [SEP] last."""
        self._encode()
        flat = np.concatenate(self._rows) if self._rows else np.zeros(0, np.int32)
        return Ragged(flat, np.cumsum(self._lengths))

    def _encode(self) -> None:
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(self._waiting)]
        rows = [ids if len(ids) <= self._max_length else [*ids[: self._max_length - 1], self._sep] for ids in rows]
        self._rows.append(np.asarray([token for ids in rows for token in ids], np.int32))
        self._lengths += [len(ids) for ids in rows]
        self._waiting = []


def texts_of(examples: Sequence[Example]) -> Iterator[str]:
    """Every cleaned caption, question and answer, for training a tokenizer."""
    for index in range(len(examples)):
        example = examples[index]
        yield from map(clean_caption, example.captions)
        for question in example.questions:
            yield clean_caption(question.text, 50)
            yield from map(clean_answer, question.answers)
