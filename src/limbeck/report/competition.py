"""A CoMD run's competition as its page tells it: scores by tuning, and of every round what was found and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limbeck.report.examples import Answer, GalleryItem, Picture, RowKey
from limbeck.report.round_charts import Bin
from limbeck.report.table import Column


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A model on the benchmarks, and what it said about the gallery's pictures."""

    figures: Mapping[str, float]
    """quality by column"""
    said: Mapping[RowKey, Answer]


@dataclass(frozen=True, kw_only=True)
class Example:
    """An instruction, both answers to it, and what was written from it."""

    instruction: str
    text: str
    picture: Picture | None
    answers: Mapping[str, str]
    """by role"""
    scores: tuple[float, ...]
    """the teacher's and the student's, each the mean over both orders; empty where none could be read"""
    difficulty: float | None
    kind: str | None
    """hard or easy"""
    written: str


@dataclass(frozen=True, kw_only=True)
class Round:
    """One closed round. Where a number is None, nothing was assessed."""

    number: int
    tau: float | None
    """None where the rule of difficulty has none"""
    instructions: int
    """all that were put to teacher and student"""
    hard: int
    easy: int
    unparsed: int
    chosen: int
    written: int
    accepted: int
    rejected: Mapping[str, int]
    """new instructions that were not taken, by the reason"""
    teacher: float | None
    student: float | None
    """mean scores, 1 to 10"""
    bias: Mapping[str, float]
    """`flips` of instructions, `first_better` and `second_better` of calls; shares"""
    replies: int
    """of the assessor"""
    readable: int
    """of these"""
    difficulty: tuple[Bin, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Growth:
    """What a round added to the pool."""

    round: int
    """0 for the first pool"""
    instructions: int
    pictures: int
    total: int
    """instructions of the pool after it"""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a role cost; in one round, or in all where `round` is None."""

    role: str
    round: int | None
    calls: int
    read: int
    """tokens"""
    written: int
    seconds: float
    """summed over the calls"""


@dataclass(frozen=True)
class Refusals:
    """Calls that got no reply."""

    role: str
    round: int
    """0 for the teacher's answers, which no round has to itself"""
    count: int
    example: str
    """why, of one of them"""


@dataclass(frozen=True, kw_only=True)
class Competition:
    """A run's competition, as far as it has come."""

    name: str
    tone: str
    model: str
    """the student's name in the report"""
    planned: int
    """tunings"""
    ended: int | None
    """the round that wrote nothing new, after which there was no other tuning; None where all are held"""
    columns: tuple[Column, ...]
    """figures of the benchmarks that any tuning or the teacher was tried on"""
    tunings: Mapping[int, Tried]
    """the student after each tuning that was tried"""
    teacher: Tried | None
    """None where it was not tried"""
    gallery: tuple[GalleryItem, ...]
    rounds: tuple[Round, ...]
    growth: tuple[Growth, ...]
    spent: tuple[Spent, ...]
    refusals: tuple[Refusals, ...]
    left_out: int
    """pictures of instructions left out to keep the page light"""

    @property
    def sentence(self) -> str:
        """How far it has come."""
        done = f"{len(self.rounds)} of {max(self.planned - 1, 0)} rounds between {self.planned} tunings are closed"
        if self.ended is not None:
            done += f"; round {self.ended} wrote nothing new, which ended the competition"
        if not self.growth:
            return f"{done}."
        grown = f"; the pool has grown from {self.growth[0].instructions:,} to {self.growth[-1].total:,} instructions"
        return f"{done}{grown if len(self.growth) > 1 else ''}."

    @property
    def totals(self) -> tuple[Spent, ...]:
        """Cost by role, over all rounds."""
        roles = dict.fromkeys(each.role for each in self.spent)
        return tuple(_sum(role, [each for each in self.spent if each.role == role]) for role in roles)


def _sum(role: str, spent: Sequence[Spent]) -> Spent:
    return Spent(
        role=role,
        round=None,
        calls=sum(each.calls for each in spent),
        read=sum(each.read for each in spent),
        written=sum(each.written for each in spent),
        seconds=sum(each.seconds for each in spent),
    )
