"""Chat templates: a conversation to token ids, and which of them the model has to say.

A template is one small table of what stands between the texts. Two things are made of it: the training text, and the
Jinja template with which `apply_chat_template(..., add_generation_prompt=True)` writes the same text up to an answer.

The whole text is tokenised once, and the tokenizer's own offsets say which tokens lie between the end of a generation
prompt and the end of the stop token: those, and no others, are supervised. No part of it is tokenised a second time to
guess a length. Two things could still make training differ from generation, where a prompt is tokenised without what
follows it. A tokenizer may cut prompts otherwise when an answer follows: `Chat` tries that out on answers that begin
differently, and refuses the pair of tokenizer and template. Or one token may join the end of a prompt with the first
letters of a particular answer: that conversation is `Unfit`, and whoever collects conversations counts it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal
from zlib import crc32

import numpy as np
from pydantic import model_validator
from transformers import PreTrainedTokenizerFast

from limbeck.config import Section
from limbeck.data.answer_spans import (
    BEGINNINGS,
    Encoded,
    Span,
    Unfit,
    any_of,
    mark_answers,
    special_tokens,
    unwritable,
    widened,
)
from limbeck.data.conversations import IMAGE, Conversation, Turn
from limbeck.data.decoder_tokenizer import DecoderIds
from limbeck.data.examples import DataError, FileImage

TemplateName = Literal["vicuna_v1", "llama", "qwen", "plain"]


@dataclass(frozen=True, kw_only=True)
class Template:
    """What stands between the texts, in their order; {bos} and {eos} are the tokenizer's."""

    system: str = ""
    """the system prompt where neither the recipe nor the conversation has one"""
    begin: str = ""
    system_open: str = ""
    system_close: str = ""
    system_inside: bool = False
    """whether the system prompt stands inside the first user turn"""
    user_open: str = ""
    image: str = f"{IMAGE}\n"
    user_close: str = ""
    assistant_open: str = ""
    """the last of a generation prompt"""
    answer_open: str = ""
    """the first that the model says"""
    answer_close: str = ""
    stop: str = "{eos}"
    """the last that the model says, one special token"""
    turn_close: str = ""
    caption_only: bool = False
    """the picture and one answer; what the user says is left out"""


QUESTIONS = ("Is it?", "so.", *BEGINNINGS)
"""Questions that end differently."""

TEMPLATES: dict[TemplateName, Template] = {
    "vicuna_v1": Template(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        begin="{bos}",
        system_close=" ",
        user_open="USER: ",
        user_close=" ",
        assistant_open="ASSISTANT:",
        answer_open=" ",
    ),
    "llama": Template(
        system_open="<<SYS>>\n",
        system_close="\n<</SYS>>\n\n",
        system_inside=True,
        user_open="{bos}[INST] ",
        user_close=" [/INST]",
        answer_open=" ",
        answer_close=" ",
    ),
    "qwen": Template(
        system="You are a helpful assistant.",
        begin="{bos}",
        system_open="<|im_start|>system\n",
        system_close="<|im_end|>\n",
        user_open="<|im_start|>user\n",
        user_close="<|im_end|>\n",
        assistant_open="<|im_start|>assistant\n",
        stop="<|im_end|>",
        turn_close="\n",
    ),
    "plain": Template(begin="{bos}", image=IMAGE, caption_only=True),
}
"""LLaVA-1.5's template; Llama 2's, each turn with its own `<s>`; ChatML, as Qwen and SmolLM2 speak it; LLaVA's picture
and caption for pre-training, with a stop token at its end."""


class ChatConfig(Section):
    """How conversations are written down."""

    template: TemplateName = "vicuna_v1"
    system: str | None = None
    """the system prompt of conversations that have none; null: the template's own; "": none"""
    picture: Literal["first", "either"] = "first"
    """before the first question; or, in every other conversation by its id, behind it (CoMD, Eq. 2)"""

    @model_validator(mode="after")
    def _has_a_question(self) -> ChatConfig:
        if self.picture == "either" and TEMPLATES[self.template].caption_only:
            raise ValueError(
                f"picture: either: template {self.template} has no question for the picture to stand behind"
            )
        return self


class Chat:
    """One template with one tokenizer. Raises DataError where they do not go together."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: ChatConfig | None = None) -> None:
        self.config = config or ChatConfig()
        self.tokenizer = tokenizer
        self.ids = DecoderIds.of(tokenizer)
        self.template = _filled(TEMPLATES[self.config.template], tokenizer)
        self.system = self.template.system if self.config.system is None else self.config.system.strip()
        self._special = special_tokens(tokenizer)
        self._control = any_of(self._special)
        self._check_control_tokens()
        self.stop_id = int(tokenizer.get_vocab()[self.template.stop])
        self._check_borders()

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | Unfit]:
        """Each conversation as tokens, or why it cannot be written."""
        written = [self._write(conversation) for conversation in conversations]
        texts = [each[0] for each in written if not isinstance(each, Unfit)]
        encodings = iter(self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
        result: list[Encoded | Unfit] = []
        for each in written:
            if not isinstance(each, Unfit):
                encoding = next(encodings)
                ids, offsets = np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int64)
                each = mark_answers(*each, ids, offsets, self.stop_id)
            result.append(each)
        return result

    def text(self, conversation: Conversation) -> str:
        """The whole text. Raises Unfit."""
        written = self._write(conversation)
        if isinstance(written, Unfit):
            raise written
        return written[0]

    @property
    def answer_marker(self) -> list[int]:
        """The tokens between a question and its answer. Raises DataError where they change with the question."""
        mark = self.template.user_close + self.template.assistant_open
        found = []
        for question in QUESTIONS:
            turns = (Turn("user", question), Turn("assistant", "Yes"))
            written = self._write(Conversation(id="a trial", image=FileImage("a trial"), turns=turns))
            assert not isinstance(written, Unfit)
            text, [(begin, _)] = written
            encoding = self.tokenizer.backend_tokenizer.encode(text[:begin], add_special_tokens=False)
            start = begin - len(mark.lstrip())
            pairs = zip(encoding.ids, encoding.offsets, strict=True)
            found.append([number for number, (_, end) in pairs if end > start])
        other = next((number for number, ids in enumerate(found) if ids != found[0]), None)
        if other is not None:
            raise DataError(
                f"chat template {self.config.template}: behind the question {QUESTIONS[other]!r} this tokenizer cuts "
                f"{mark!r} otherwise than behind {QUESTIONS[0]!r}; choose another template"
            )
        return found[0]

    @property
    def jinja(self) -> str:
        """The same template for `tokenizer.chat_template`, system prompt and special tokens written out."""
        table = self.template
        system = f"{_quoted(table.system_open)} ~ state.system ~ {_quoted(table.system_close)}"
        user = (
            '{%- if message["content"] is not string and '
            'message["content"] | selectattr("type", "equalto", "image") | list -%}'
            f"{{{{- {_quoted(table.image)} -}}}}{{%- endif -%}}"
        )
        if not table.caption_only:
            user += '{{- text(message["content"]) -}}'
        inside = f"{{%- if not state.asked and state.system -%}}{{{{- {system} -}}}}{{%- endif -%}}"
        before = f"{{%- if state.system -%}}{{{{- {system} -}}}}{{%- endif -%}}"
        find_system = (
            '{%- for message in messages if message["role"] == "system" -%}'
            '{%- set state.system = text(message["content"]) -%}{%- endfor -%}'
        )
        answer_open, answer_close = (
            table.assistant_open + table.answer_open,
            table.answer_close + table.stop + table.turn_close,
        )
        return "".join(
            [
                "{%- macro text(content) -%}{%- if content is string -%}{{- content | trim -}}{%- else -%}",
                '{{- content | selectattr("type", "equalto", "text") | map(attribute="text") | join("\\n") | trim -}}',
                "{%- endif -%}{%- endmacro -%}",
                f"{{%- set state = namespace(system={_quoted(self.system)}, asked=false) -%}}",
                "" if table.caption_only else find_system,
                f"{{{{- {_quoted(table.begin)} -}}}}",
                "" if table.system_inside or table.caption_only else before,
                '{%- for message in messages -%}{%- if message["role"] == "user" -%}',
                f"{{{{- {_quoted(table.user_open)} -}}}}",
                inside if table.system_inside else "",
                user,
                f"{{{{- {_quoted(table.user_close)} -}}}}{{%- set state.asked = true -%}}",
                '{%- elif message["role"] == "assistant" -%}',
                f'{{{{- {_quoted(answer_open)} ~ text(message["content"]) ~ {_quoted(answer_close)} -}}}}',
                "{%- endif -%}{%- endfor -%}",
                f"{{%- if add_generation_prompt -%}}{{{{- {_quoted(table.assistant_open)} -}}}}{{%- endif -%}}",
            ]
        )

    def _write(self, conversation: Conversation) -> tuple[str, list[Span]] | Unfit:
        """The whole text, and where in it each answer begins and its stop token ends."""
        table = self.template
        unfit = unwritable(conversation, self._control)
        if unfit is not None:
            return unfit
        exchanges = conversation.exchanges
        if table.caption_only and (conversation.image is None or len(exchanges) > 1):
            return Unfit("template plain takes a picture and one caption")
        prompt = self.system if conversation.system is None else conversation.system.strip()
        system = table.system_open + prompt + table.system_close if prompt and not table.caption_only else ""
        text = table.begin + ("" if table.system_inside else system)
        mark = (table.user_close + table.assistant_open).strip()
        spans = []
        for number, (question, answer) in enumerate(exchanges):
            text += table.user_open
            asked = "" if table.caption_only else question.strip()
            if mark and mark in asked:
                return Unfit(f"a question holds {mark!r}, behind which the template has answers begin")
            if number == 0:
                text += system if table.system_inside else ""
                asked = self._with_picture(asked, conversation)
            text += asked + table.user_close + table.assistant_open
            begin = len(text)
            text += table.answer_open + answer.strip() + table.answer_close + table.stop
            spans.append((begin, len(text)))
            text += table.turn_close
        return text, spans

    def _with_picture(self, question: str, conversation: Conversation) -> str:
        """The first question with the picture's place, if there is one."""
        if conversation.image is None:
            return question
        if self.config.picture == "either" and crc32(conversation.id.encode()) % 2:
            return f"{question}\n{IMAGE}"
        return self.template.image + question

    def _check_control_tokens(self) -> None:
        """Everything in the template that looks like a control token must be one."""
        missing = [
            token
            for token in dict.fromkeys(re.findall(r"<\|\w+\|>", "".join(map(str, asdict(self.template).values()))))
            if token not in self._special
        ]
        if missing:
            raise DataError(
                f"chat template {self.config.template} needs the special tokens {', '.join(missing)}, which the "
                "tokenizer does not have; choose another template or, for tokenizer bpe, name them in extra_tokens"
            )

    def _check_borders(self) -> None:
        """Every prompt must be cut into the same tokens whatever answer follows."""
        image = FileImage("a trial") if self.template.caption_only else None
        for beginning in BEGINNINGS:
            turns = (Turn("user", "Is it?"), Turn("assistant", beginning))
            written = self._write(Conversation(id="a trial", image=image, turns=turns))
            assert not isinstance(written, Unfit)
            text, [(begin, _)] = written
            encode = self.tokenizer.backend_tokenizer.encode
            prompt, whole = (encode(each, add_special_tokens=False).tokens for each in (text[:begin], text))
            if whole[: len(prompt)] != prompt:
                raise DataError(
                    f"chat template {self.config.template}: this tokenizer cuts a prompt into {prompt[-3:]} by itself "
                    f"and into {whole[: len(prompt)][-3:]} when {beginning!r} follows; choose another template"
                )


def encode_conversation(conversation: Conversation, chat: Chat, image_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids with `image_tokens` places for the picture, and labels, shifted: both int64 [T]. Raises Unfit.

    labels[t] is the token that position t has to predict, IGNORE where that is no answer's.
    """
    [encoded] = chat.encode([conversation])
    if isinstance(encoded, Unfit):
        raise encoded
    return widened(encoded.ids, encoded.supervised, chat.ids.image, image_tokens)


def _filled(template: Template, tokenizer: PreTrainedTokenizerFast) -> Template:
    """The template with the tokenizer's tokens in it."""
    tokens = {"{bos}": tokenizer.bos_token or "", "{eos}": str(tokenizer.eos_token)}
    filled = {}
    for name, value in asdict(template).items():
        for place, token in tokens.items():
            value = value.replace(place, token) if isinstance(value, str) else value
        filled[name] = value
    return replace(template, **filled)


def _quoted(text: str) -> str:
    """A text as Jinja writes it."""
    return json.dumps(text, ensure_ascii=False)
