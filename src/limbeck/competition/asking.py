"""Asking a model about pictures, wherever it runs: the one face of in-process models and of servers.

A role of the competition (teacher, student, assessor, augmentor, judge) is filled by an `Asker`.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from limbeck.data.examples import ImageSource
from limbeck.errors import Halted


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to ask."""

    id: str
    """unique in one call of `ask`"""
    prompt: str
    """what the user says; the picture stands before it"""
    image: ImageSource | None
    max_new_tokens: int
    seed: int
    """of sampling: the same request with the same seed gets the same reply from an in-process model"""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model said."""

    text: str
    cut: bool
    """ended by `max_new_tokens`, not by the model"""
    prompt_tokens: int
    """the picture's tokens included, as the model counts them"""
    new_tokens: int
    seconds: float
    """the share of wall time it took"""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One request that cannot be answered while others can: a picture that is refused, or broken after all retries."""

    reason: str


class Asker(Protocol):
    """A model that answers requests."""

    @property
    def name(self) -> str:
        """For people: the model's name or folder."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells models apart in the pool."""
        ...

    def ask(
        self, requests: Sequence[Request], *, temperature: float, done: Container[str] = ()
    ) -> Generator[tuple[Request, Reply | Refusal], None, None]:
        """Every request with its reply or refusal, as they finish, in any order; each exactly once.

        Requests whose id is `done` are answered already and left out; a model of this process must know of them all
        the same, to sample as if it had been asked everything at once.
        At temperature 0 the likeliest token is taken. Raises EndpointGone where nothing more can be answered.
        """
        ...


class AskingError(Halted):
    """A model that cannot be asked as the recipe says; the message names it and what would be right."""


class EndpointGone(AskingError):
    """Every server of a role is gone for good. What was yielded before is kept; the same command goes on later."""
