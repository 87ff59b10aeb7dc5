"""What stands in the pool: instructions, answers, assessments, new instructions, decisions, and what each cost."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Answerer = Literal["teacher", "student"]
"""Who answers instructions."""
Asked = Literal["teacher", "student", "assessor", "augmentor"]
"""Every role that costs calls."""
Order = Literal["teacher_first", "student_first"]
"""Whose answer an assessor reads as Assistant 1's."""
ORDERS: tuple[Order, Order] = ("teacher_first", "student_first")
Kind = Literal["hard", "easy", "unparsed"]
"""What a round makes of an instruction; `unparsed` has no scores in both orders and is in neither set."""
TEACHER_ROUND = 0
"""The round of a teacher's answers: it never changes, so they are asked once for all rounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one call took."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0


FREE = Cost()
"""Of what was not asked but imported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture that instructions are about."""

    id: str
    """names it in the pool: a path from the data's folder on, the same on every machine, a whole path where no such
    folder was given, or a drawn picture's key"""
    path: str | None
    """its file, absolute; None where it is no file and the recipe's data make it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seed:
    """An instruction that the competition starts from."""

    name: str
    """unique; where it comes from, such as a file's name and record"""
    picture: Picture | None
    text: str
    answer: str | None = None
    """what the data answer, which the competition does not read"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """One thing to answer about a picture."""

    id: int
    """from 1 on: seeds as they were given, then each round's in the order of the seeds they were written from"""
    name: str | None
    """a seed's; None where a model wrote it"""
    image: str | None
    """the id of its picture"""
    text: str
    round: int
    """0 for a seed, else the round that wrote it"""
    parent: int | None
    """the instruction that it was written from"""


@dataclass(frozen=True, slots=True)
class Author:
    """Which model was asked, and by which prompt."""

    model: str
    """the fingerprint of a model that the pool knows"""
    prompt: str
    """the id of a prompt that the pool knows"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What teacher or student said to an instruction. Key: (role, round, author, instruction)."""

    instruction: int
    role: Answerer
    round: int
    """TEACHER_ROUND for the teacher, else the round whose student said it"""
    author: Author
    text: str
    cut: bool
    """ended by the limit of tokens"""
    cost: Cost = FREE


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Both answers to an instruction."""

    instruction: Instruction
    teacher: str
    student: str

    @property
    def about(self) -> str:
        """Tells pairs of answers apart, so that no assessment of other answers is taken for one of these."""
        return hashlib.sha256(f"{len(self.teacher)} {self.teacher}{self.student}".encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What the assessor said about a pair. Key: (round, author, instruction, order, about, attempt)."""

    round: int
    instruction: int
    order: Order
    about: str
    """the `Pair.about` of the answers that were judged"""
    attempt: int
    """from 0 on: a reply without scores is asked for again"""
    author: Author
    text: str
    scores: tuple[float, float] | None
    """of Assistant 1 and Assistant 2, in the order of this call; None where none could be read"""
    cost: Cost = FREE

    @property
    def teacher_and_student(self) -> tuple[float, float] | None:
        """The scores of teacher and student."""
        if self.scores is None or self.order == "teacher_first":
            return self.scores
        return self.scores[1], self.scores[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What the augmentor wrote from a seed. Key: (round, author, instruction, attempt)."""

    round: int
    instruction: int
    """the seed"""
    attempt: int
    """from 0 on"""
    author: Author
    text: str
    verdict: str | None
    """why it is not taken; None where nothing speaks against it (so far, while the round is open)"""
    cost: Cost = FREE


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A call that got no reply, which is not asked again. Key: (role, round, author, instruction, order, attempt)."""

    role: Asked
    round: int
    instruction: int
    author: Author
    reason: str
    order: Order | None = None
    """an assessment's"""
    about: str | None = None
    """an assessment's, the `Pair.about` of the answers to be judged"""
    attempt: int = 0


Result = Answer | Assessment | Augmentation | Refused
"""What one call leaves behind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a round found about an instruction. Key: (round, instruction)."""

    round: int
    instruction: int
    difficulty: float | None
    kind: Kind
    chosen: bool
    """new instructions were asked for from it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A new instruction that a round accepts."""

    seed: int
    attempt: int
    author: Author
    """with seed and attempt the augmentation that it is taken from"""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """All that closes a round, written in one transaction."""

    round: int
    settings: Mapping[str, str | float | int | bool | None]
    """what it was decided by, for people: the rule, tau, the seed of chance"""
    decisions: tuple[Decision, ...]
    accepted: tuple[Written, ...]
    rejected: Mapping[tuple[int, int, Author], str]
    """(seed, attempt, author) of an augmentation to why it is not taken, where that shows only now"""
