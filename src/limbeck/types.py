"""What flows between data, models and losses.

Shape legend, used in every docstring: B pairs of one batch, T text tokens, N image tokens (class token included),
S keys, D hidden width, d head width, H heads, E embedding width, V vocabulary, Q questions, A answers.
Masks are boolean and True where a token is real, or where a query may look at a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

from torch import Tensor

IGNORE = -100
"""Label of a position that no loss counts."""


@dataclass(frozen=True, kw_only=True)
class AttentionState:
    """What one layer's attention maps are made of. A map itself is never kept.

    The map is ``softmax(scale * query @ key.T)`` over the keys that ``mask`` allows.
    """

    query: Tensor
    """[B, H, T, d]"""
    key: Tensor
    """[B, H, S, d]"""
    mask: Tensor | None
    """boolean, broadcastable to [B, 1, T, S], True where a query may look at a key; None where every key may be seen"""
    scale: float


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What one pass through one tower shows to losses.

    Attention is that of the tower's last layer, and None unless the pass was asked to capture it.
    """

    output: Tensor
    """unit embedding [B, E] (image, text), match logits [B, 2] (fusion) or token logits [B, T, V] (decoder)"""
    hidden: Tensor
    """the tower's last hidden states, [B, T, D]"""
    mask: Tensor | None = None
    """[B, T], True where `hidden` is a real token; None where all are"""
    self_attention: AttentionState | None = None
    cross_attention: AttentionState | None = None


class Counts(NamedTuple):
    """What an optimizer step averages over: this process's share of the whole step.

    Each is the sum over all micro-batches and processes divided by the number of processes, so that adding up
    micro-batches and averaging over processes gives the mean over the whole step, however it was split.
    """

    pairs: Tensor
    """image-text pairs; conversations, with or without a picture"""
    tokens: Tensor
    """real caption tokens, the first one included; all real tokens of conversations"""
    questions: Tensor
    """questions"""
    question_tokens: Tensor
    """real question tokens"""
    answer_tokens: Tensor
    """real answer tokens, the first one included; in conversations the supervised ones, stop tokens included"""
    answers: Tensor
    """answers, several of which can belong to one question"""


class Batch(TypedDict):
    """One micro-batch, as the collator makes it. Position 0 of every text is the class token."""

    pixel_values: Tensor
    """[B, 3, R, R], normalised"""
    input_ids: Tensor
    """[B, T] caption of each picture: class token, words, separator, padding"""
    attention_mask: Tensor
    """[B, T] boolean"""
    image_id: Tensor
    """[B] int64, equal for two rows exactly where they show the same picture"""
    draws: NotRequired[Tensor]
    """[B, T, 2] float32, uniform in [0, 1): what a method draws at random for each token of `input_ids`. They are the
    pair's own, new in each epoch, so that they do not depend on which batch it is in"""
    counts: NotRequired[Counts]
    question_ids: NotRequired[Tensor]
    """[Q, T]"""
    question_mask: NotRequired[Tensor]
    """[Q, T] boolean"""
    question_image: NotRequired[Tensor]
    """[Q] row of `pixel_values` that the question is about"""
    answer_ids: NotRequired[Tensor]
    """[A, U]"""
    answer_mask: NotRequired[Tensor]
    """[A, U] boolean"""
    answer_question: NotRequired[Tensor]
    """[A] row of `question_ids` that is answered"""
    answer_weight: NotRequired[Tensor]
    """[A] share of the annotators who gave this answer"""


class ConversationBatch(TypedDict):
    """One micro-batch of conversations about pictures, as the collator makes it; text runs from left to right."""

    pixel_values: Tensor
    """[B, 3, R, R] float32, normalised; zeros where a row has no picture"""
    input_ids: Tensor
    """[B, T] int64, the image token once for each of the picture's features, padding on the right"""
    attention_mask: Tensor
    """[B, T] boolean"""
    labels: Tensor
    """[B, T] int64, shifted: the token that this position must predict, IGNORE where that is not an answer's"""
    image_id: Tensor
    """[B] int64, equal for two rows exactly where they show the same picture; a row without one has its own"""
    has_image: Tensor
    """[B] boolean; a row without a picture has no image tokens"""
    draws: NotRequired[Tensor]
    """[B, 2] float32, uniform in [0, 1): by which a row draws the wrong text and the wrong picture that matching shows
    it. They are the row's own, new in each epoch, so that they do not depend on which batch it is in"""
    counts: NotRequired[Counts]
