"""Which tokens of a text a model has to say: what every chat template has in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from limbeck.data.conversations import Conversation, check_turns
from limbeck.data.records import BrokenRecord
from limbeck.types import IGNORE

BEGINNINGS = ("Yes", "yes", "2", "(a", '"A', "-1", "\u00e9t\u00e9", "\u732b")
"""Answers that begin differently, to try out whether a prompt is cut into the same tokens whatever follows."""

Span = tuple[int, int]
"""Where an answer begins in a text, and where its stop token ends."""


class Unfit(Exception):
    """A conversation that cannot be written in this template; the message is the reason."""


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens, `<image>` not yet widened to the picture's tokens."""

    ids: np.ndarray
    """int32 [T]"""
    supervised: np.ndarray
    """boolean [T], the tokens that the model has to say: answers with their stop tokens"""
    ends: np.ndarray
    """tokens up to the end of each exchange, the stop token included"""


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts that stand for special tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches any of them, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def unwritable(conversation: Conversation, special: re.Pattern[str]) -> Unfit | None:
    """Why no template can write a conversation: its turns, or a special token in what is said."""
    try:
        check_turns(conversation.turns)
    except BrokenRecord as error:
        return Unfit(str(error))
    for turn in conversation.turns:
        found = special.search(turn.text)
        if found:
            return Unfit(f"its text contains the special token {found.group()}")
    return None


def mark_answers(
    text: str, spans: Sequence[Span], ids: np.ndarray, offsets: np.ndarray, stop_id: int
) -> Encoded | Unfit:
    """The tokens ids [T] that lie in the spans; offsets are [T, 2], the characters that each token stands for."""
    starts, stops = offsets[:, 0], offsets[:, 1]
    firsts = np.searchsorted(starts, [begin for begin, _ in spans])
    ends = np.searchsorted(starts, [end for _, end in spans])
    supervised = np.zeros(len(ids), bool)
    for first, end, (begin, last) in zip(firsts, ends, spans, strict=True):
        if (first and stops[first - 1] > begin) or stops[end - 1] != last or ids[end - 1] != stop_id:
            around = text[max(0, begin - 12) : begin + 12]
            return Unfit(f"one token joins the prompt and the answer in {around!r}")
        supervised[first:end] = True
    return Encoded(ids=ids, supervised=supervised, ends=ends)


def widened(ids: np.ndarray, supervised: np.ndarray, image: int, image_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [T] with `<image>` repeated for each of the picture's tokens, and shifted labels: both int64 [T + N - 1]."""
    times = np.where(ids == image, image_tokens, 1)
    ids, supervised = np.repeat(ids, times).astype(np.int64), np.repeat(supervised, times)
    labels = np.full(len(ids), IGNORE, np.int64)
    labels[:-1] = np.where(supervised[1:], ids[1:], IGNORE)
    return ids, labels
