"""What every source of conversations gives: turns about a picture, made when they are asked for.

The picture's place is the front of the first user turn, in every format: `<image>` in a record's text is taken out
here, and the chat template puts it where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, overload

import numpy as np

from limbeck.data.examples import ImageSource, Skipped
from limbeck.data.records import BrokenRecord

IMAGE = "<image>"
"""Stands for the picture in a text."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Role
    text: str


@dataclass(frozen=True)
class Conversation:
    """A picture or none, and what is said about it: perhaps a system prompt, then user and assistant by turns."""

    id: str
    image: ImageSource | None
    turns: tuple[Turn, ...]

    @property
    def system(self) -> str | None:
        """The system prompt, None where it has none of its own."""
        return self.turns[0].text if self.turns and self.turns[0].role == "system" else None

    @property
    def exchanges(self) -> list[tuple[str, str]]:
        """(user's text, answer), as `check_turns` accepts turns; the answer is "" where the last has none."""
        said = [turn.text for turn in self.turns if turn.role != "system"]
        return list(zip_longest(said[::2], said[1::2], fillvalue=""))


class Conversations(Sequence[Conversation]):
    """A sequence that makes each conversation when it is asked for."""

    def __init__(self, length: int, make: Callable[[int], Conversation]) -> None:
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self._make(each) for each in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} of {self._length} conversations")
        return self._make(index % self._length)


@dataclass(frozen=True)
class ConversationSource:
    """Conversations by index, so that resuming is exact and processes can share them; and what was left out."""

    name: str
    conversations: Sequence[Conversation]
    groups: np.ndarray | None = None
    """int64 [G + 1], where each group of conversations starts, and their number: of a group every epoch draws one.
    None: each conversation is a group of its own"""
    skipped: tuple[Skipped, ...] = ()
    """what is broken"""
    set_aside: tuple[Skipped, ...] = ()
    """what a setting of the source leaves out on purpose"""


def check_turns(turns: Sequence[Turn]) -> None:
    """Raise BrokenRecord unless user and assistant take turns, the user first, the assistant last and never silent."""
    said = turns[1:] if turns and turns[0].role == "system" else turns
    if not said:
        raise BrokenRecord("nothing is said in it")
    for number, turn in enumerate(said):
        expected = "user" if number % 2 == 0 else "assistant"
        if turn.role != expected:
            raise BrokenRecord(f"turn {number + 1} is the {turn.role}'s, wanted the {expected}'s")
        if turn.role == "assistant" and not turn.text.strip():
            raise BrokenRecord(f"turn {number + 1}: the answer is empty")
    if len(said) % 2:
        raise BrokenRecord(f"turn {len(said)} is the user's and has no answer")


def conversation_of(id: str, image: ImageSource | None, turns: Iterable[Turn]) -> Conversation:
    """A conversation of a record's turns, `<image>` taken out of them. Raises BrokenRecord."""
    turns = tuple(turns)
    places = [(number, turn) for number, turn in enumerate(turns, start=1) for _ in range(turn.text.count(IMAGE))]
    if len(places) > 1:
        raise BrokenRecord(f"{len(places)} times {IMAGE}; it may have one picture")
    if places and image is None:
        raise BrokenRecord(f"turn {places[0][0]} has {IMAGE}, and the record no picture")
    first_user = next((turn for turn in turns if turn.role == "user"), None)
    if places and places[0][1] is not first_user:
        raise BrokenRecord(f"{IMAGE} in turn {places[0][0]}; the picture belongs in the user's first one")
    turns = tuple(Turn(turn.role, turn.text.replace(IMAGE, "").strip()) for turn in turns)
    check_turns(turns)
    return Conversation(id=id, image=image, turns=turns)


def join(sources: Sequence[ConversationSource]) -> ConversationSource:
    """Several sources as one, in the order given."""
    if len(sources) == 1:
        return sources[0]
    starts = np.cumsum([0, *(len(source.conversations) for source in sources)])
    groups = None
    if any(source.groups is not None for source in sources):
        each = [group_starts(source)[:-1] + start for source, start in zip(sources, starts[:-1], strict=True)]
        groups = np.concatenate([*each, starts[-1:]])
    return ConversationSource(
        name=" + ".join(source.name for source in sources),
        conversations=Conversations(int(starts[-1]), _Joined(tuple(sources), starts)),
        groups=groups,
        skipped=tuple(entry for source in sources for entry in source.skipped),
        set_aside=tuple(entry for source in sources for entry in source.set_aside),
    )


def group_starts(source: ConversationSource) -> np.ndarray:
    """int64 [G + 1], where each group starts."""
    return np.arange(len(source.conversations) + 1) if source.groups is None else source.groups


@dataclass(frozen=True)
class _Joined:
    sources: tuple[ConversationSource, ...]
    starts: np.ndarray

    def __call__(self, index: int) -> Conversation:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sources[part].conversations[index - int(self.starts[part])]
