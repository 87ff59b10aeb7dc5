"""A pretrained model's own chat template, with the face of `Chat`: which tokens of a conversation it has to say.

The template is the model's, so nothing is known of what it writes between the texts. It is asked: the text up to an
answer is what it writes as a generation prompt, the whole text must go on from there with the answer, and the special
token behind the answer is what the model stops at. A template where this does not hold cannot be trained with, and is
refused. As in `Chat`, the whole text is tokenised once and the tokenizer's offsets say which tokens are the answers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from limbeck.data.answer_spans import BEGINNINGS, Encoded, Span, Unfit, any_of, mark_answers, special_tokens, unwritable
from limbeck.data.conversations import Conversation, Turn
from limbeck.data.decoder_tokenizer import DecoderIds
from limbeck.data.examples import DataError, FileImage


class ModelChat:
    """The chat template of a model's processor.

    Raises DataError where it has none, or where it does not say which tokens are the answers'.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor
        self.tokenizer = _fast(processor)
        self._control = any_of(special_tokens(self.tokenizer))
        self.ids = _ids(processor, self.tokenizer)
        self.stop = ""
        """the special token behind every answer"""
        self._try_out()
        self.stop_id = int(self.tokenizer.get_vocab()[self.stop])

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | Unfit]:
        """Each conversation as tokens, the picture as one of them, or why it cannot be written."""
        written = [self._write(conversation) for conversation in conversations]
        whole = [each for each in written if not isinstance(each, Unfit)]
        encodings = iter(self._tokens([text for text, _ in whole])) if whole else iter(())
        result: list[Encoded | Unfit] = []
        for each, conversation in zip(written, conversations, strict=True):
            if not isinstance(each, Unfit):
                each = mark_answers(*each, *next(encodings), int(self.tokenizer.get_vocab()[self.stop]))
            if isinstance(each, Encoded):
                pictures, expected = int((each.ids == self.ids.image).sum()), int(conversation.image is not None)
                if pictures != expected:
                    each = Unfit(f"the model's template writes {pictures} places for {expected} pictures")
            result.append(each)
        return result

    def text(self, conversation: Conversation) -> str:
        """The whole text. Raises Unfit."""
        written = self._write(conversation)
        if isinstance(written, Unfit):
            raise written
        return written[0]

    def _write(self, conversation: Conversation) -> tuple[str, list[Span]] | Unfit:
        """The whole text, and where in it each answer stands with its stop token."""
        unfit = unwritable(conversation, self._control)
        if unfit is not None:
            return unfit
        messages = _messages(conversation)
        try:
            text = self._render(messages, ask=False)
            spans, end = [], 0
            for place, message in enumerate(messages):
                if message["role"] != "assistant":
                    continue
                prompt = self._render(messages[:place], ask=True)
                if not text.startswith(prompt) or len(prompt) < end:
                    return Unfit("the model's template writes a generation prompt that its whole text does not hold")
                end = self._end(text, len(prompt), message["content"][0]["text"].strip())
                spans.append((len(prompt), end))
        except TemplateError as error:
            return Unfit(f"the model's template refuses it: {error}")
        except _Missing as error:
            return Unfit(str(error))
        return text, spans

    def _end(self, text: str, begin: int, answer: str) -> int:
        """Where the stop token of an answer ends that begins, after blanks, at `begin`. Raises _Missing."""
        start = begin + len(text[begin:]) - len(text[begin:].lstrip())
        if not text.startswith(answer, start):
            raise _Missing(
                f"the model's template writes {text[start : start + 20]!r} in place of the answer {answer[:20]!r}"
            )
        behind = start + len(answer)
        blanks = len(text[behind:]) - len(text[behind:].lstrip())
        found = self._control.match(text, behind + blanks)
        if found is None or (self.stop and found.group() != self.stop):
            what = self.stop or "a special token"
            raise _Missing(
                f"the model's template writes {text[behind : behind + 20]!r} behind an answer, not {what} to stop at"
            )
        self.stop = found.group()
        return found.end()

    def _render(self, messages: Sequence[dict[str, Any]], *, ask: bool) -> str:
        text = self.processor.apply_chat_template(list(messages), add_generation_prompt=ask, tokenize=False)
        assert isinstance(text, str)
        return text

    def _tokens(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids [T] and offsets [T, 2] of each text, with what the tokenizer itself puts before one."""
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=adds_special_tokens(self.tokenizer, texts[0]),
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        return [
            (np.asarray(ids, np.int32), np.asarray(offsets, np.int64))
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _try_out(self) -> None:
        """Write a few conversations, and cut their prompts with and without what follows. Raises DataError."""
        for beginning in BEGINNINGS:
            turns = [Turn("user", "Is it?"), Turn("assistant", beginning)] * 2
            trial = Conversation(id="a trial", image=FileImage("a trial"), turns=tuple(turns))
            [encoded] = self.encode([trial])
            if isinstance(encoded, Unfit):
                raise DataError(
                    f"{type(self.processor).__name__}: {encoded}; its chat template does not say which tokens are "
                    "answers, choose one of limbeck's own (chat.template)"
                )
            text, [(begin, _), (again, _)] = self._write(trial)  # pyright: ignore[reportGeneralTypeIssues]
            for end in (begin, again):
                [(prompt, _)] = self._tokens([text[:end]])
                if encoded.ids[: len(prompt)].tolist() != prompt.tolist():
                    raise DataError(
                        f"{type(self.processor).__name__}: its tokenizer cuts a prompt otherwise when {beginning!r} "
                        "follows; choose one of limbeck's own chat templates (chat.template)"
                    )


class _Missing(Exception):
    """The template's text is not the prompt, the answer and a stop token."""


def adds_special_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    """Whether the tokenizer is to put its own special tokens around a text that a template has written."""
    return tokenizer.bos_token is None or not text.startswith(str(tokenizer.bos_token))


def image_token_id(processor: ProcessorMixin) -> int:
    """The token in whose place a processor puts a picture. Raises DataError where it has none."""
    found = vars(processor).get("image_token_id")
    if not isinstance(found, int):
        raise DataError(f"{type(processor).__name__} has no image_token_id; wanted a processor of pictures and texts")
    return found


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    """A conversation as chat templates read it, the picture before the first question."""
    messages: list[dict[str, Any]] = []
    shown = conversation.image is None
    for turn in conversation.turns:
        content: list[dict[str, str]] = [{"type": "text", "text": turn.text}]
        if turn.role == "user" and not shown:
            content, shown = [{"type": "image"}, *content], True
        messages.append({"role": turn.role, "content": content})
    return messages


def _fast(processor: ProcessorMixin) -> PreTrainedTokenizerFast:
    tokenizer = processor.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"{type(tokenizer).__name__} is no fast tokenizer; spans of answers need one")
    if processor.chat_template is None and tokenizer.chat_template is None:
        raise DataError(f"{type(processor).__name__} has no chat template; choose one of limbeck's own (chat.template)")
    return tokenizer


def _ids(processor: ProcessorMixin, tokenizer: PreTrainedTokenizerFast) -> DecoderIds:
    """The special tokens by the model's own names."""
    image, eos, pad = image_token_id(processor), tokenizer.eos_token_id, tokenizer.pad_token_id
    missing = [name for name, number in {"end-of-sequence": eos, "padding": pad}.items() if number is None]
    if missing:
        raise DataError(f"{type(processor).__name__}: its tokenizer names no {', '.join(missing)} token")
    return DecoderIds(bos=tokenizer.bos_token_id, eos=eos, pad=pad, image=image)  # pyright: ignore[reportArgumentType]
