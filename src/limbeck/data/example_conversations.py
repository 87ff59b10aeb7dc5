"""Examples (pictures with captions and questions) as conversations: caption pairs, single questions, dialogues.

The prompts are LLaVA's: a question that wants few words says so, and a caption answers one of eleven short requests.
Which request, and the order of a dialogue, is decided by the example's id alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from limbeck.config import Section
from limbeck.data.conversations import Conversation, Conversations, ConversationSource, Turn
from limbeck.data.examples import DataError, Example, Question, Source
from limbeck.data.sources import SourceConfig, load_source

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""What LLaVA-1.5 says after a question that a benchmark answers in one word."""

BRIEF = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
    "Create a compact narrative representing the image presented.",
)
"""The LLaVA paper's requests for a brief description (its Table 11)."""

Texts = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class CaptionsConfig(Section):
    """Each caption as the answer to a request for a brief description, which template `plain` leaves out."""

    source: Literal["captions"]
    of: SourceConfig
    """where pictures and captions come from"""
    draw: Literal["one", "all"] = "one"
    """one caption of a picture, drawn anew in each epoch; or all, each a conversation of its own"""
    requests: Texts = BRIEF
    """one of them stands before each caption"""


class InstructionsConfig(Section):
    """Each question as a conversation of one turn; the answer is the one that most people gave."""

    source: Literal["instructions"]
    of: SourceConfig
    """where pictures and questions come from"""
    short_answer: str = SHORT_ANSWER
    """stands after every question"""
    describe: bool = False
    """also one conversation per picture that asks for a description; the caption is drawn anew in each epoch"""
    requests: Texts = BRIEF


class DialogueConfig(Section):
    """All questions about one picture as one conversation of several turns, in an order of chance."""

    source: Literal["dialogue"]
    of: SourceConfig
    """where pictures, questions and captions come from"""
    exchanges: int | None = Field(default=None, ge=1)
    """most questions and requests of one conversation"""
    short_answer: str = SHORT_ANSWER
    """stands after the first question, as in LLaVA's data"""
    describe: bool | Literal["all"] = True
    """begin with a request for a description, where the picture has a caption: the answer is one of them, or with `all`
    every one in an order of chance"""
    requests: Texts = BRIEF


ExamplesConfig = CaptionsConfig | InstructionsConfig | DialogueConfig


def load_examples(config: ExamplesConfig, base: Path) -> ConversationSource:
    """A source of examples as conversations. Raises DataError."""
    source = load_source(config.of, base)
    match config:
        case CaptionsConfig():
            return _grouped(source, _Captions(config), drawn=config.draw == "one", wanted="captions")
        case InstructionsConfig():
            return _grouped(source, _Instructions(config), drawn=True, wanted="answered questions")
        case DialogueConfig():
            return _grouped(source, _Dialogue(config), drawn=False, wanted="captions or answered questions")


def most_given(question: Question) -> str | None:
    """The answer that most people gave, the first of them where several are even; None where there is none."""
    given = Counter(answer.strip() for answer in question.answers if answer.strip())
    return given.most_common(1)[0][0] if given else None


Maker = Callable[[Example], list[list[Conversation]]]
"""The groups of conversations that an example makes."""


def _grouped(source: Source, make: Maker, *, drawn: bool, wanted: str) -> ConversationSource:
    """One pass to see how many conversations each example makes; they are made again when they are wanted."""
    firsts, groups, total = [], [], 0
    for index in range(len(source.examples)):
        firsts.append(total)
        for group in make(source.examples[index]):
            groups.append(total)
            total += len(group)
    if not total:
        raise DataError(f"{source.name}: its {len(source.examples)} examples have no {wanted}")
    return ConversationSource(
        name=source.name,
        conversations=Conversations(total, _Made(source.examples, make, np.asarray(firsts))),
        groups=np.asarray([*groups, total]) if drawn else None,
        skipped=source.skipped,
    )


@dataclass(frozen=True)
class _Made:
    examples: Sequence[Example]
    make: Maker
    firsts: np.ndarray
    """the number of each example's first conversation"""

    def __call__(self, index: int) -> Conversation:
        row = int(np.searchsorted(self.firsts, index, side="right")) - 1
        made = [conversation for group in self.make(self.examples[row]) for conversation in group]
        return made[index - int(self.firsts[row])]


@dataclass(frozen=True)
class _Captions:
    config: CaptionsConfig

    def __call__(self, example: Example) -> list[list[Conversation]]:
        group = _descriptions(example, self.config.requests)
        return [group] if group else []


@dataclass(frozen=True)
class _Instructions:
    config: InstructionsConfig

    def __call__(self, example: Example) -> list[list[Conversation]]:
        groups = [
            [_asked(example, f"{example.id}#{number}", [(question.text + self.config.short_answer, answer)])]
            for number, question in enumerate(example.questions)
            if (answer := most_given(question)) is not None
        ]
        described = _descriptions(example, self.config.requests) if self.config.describe else []
        return [*groups, described] if described else groups


@dataclass(frozen=True)
class _Dialogue:
    config: DialogueConfig

    def __call__(self, example: Example) -> list[list[Conversation]]:
        config, rng = self.config, random.Random(f"dialogue {example.id}")
        asked = [(question.text, answer) for question in example.questions if (answer := most_given(question))]
        rng.shuffle(asked)
        if asked:
            asked[0] = (asked[0][0] + config.short_answer, asked[0][1])
        captions = [caption for caption in example.captions if caption.strip()]
        if config.describe and captions:
            request, told = rng.choice(config.requests), rng.sample(captions, len(captions))
            asked.insert(0, (request, _sentences(told) if config.describe == "all" else told[0]))
        return [[_asked(example, example.id, asked[: config.exchanges])]] if asked else []


def _sentences(captions: Sequence[str]) -> str:
    """Captions one after the other, whether or not they end with full stops."""
    return ". ".join(caption.rstrip(" .") for caption in captions)


def _descriptions(example: Example, requests: tuple[str, ...]) -> list[Conversation]:
    """One conversation per caption."""
    rng = random.Random(f"describe {example.id}")
    return [
        _asked(example, f"{example.id}@{number}", [(rng.choice(requests), caption)])
        for number, caption in enumerate(example.captions)
        if caption.strip()
    ]


def _asked(example: Example, id: str, exchanges: Sequence[tuple[str, str]]) -> Conversation:
    turns = [
        turn
        for question, answer in exchanges
        for turn in (Turn("user", question.strip()), Turn("assistant", answer.strip()))
    ]
    return Conversation(id=id, image=example.image, turns=tuple(turns))
