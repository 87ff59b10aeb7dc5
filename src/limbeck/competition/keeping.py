"""Asking a role for what is missing, and keeping every outcome in the pool as it comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from typing import TypeVar

from tqdm import tqdm

from limbeck.competition.asking import Asker, AskingError, Refusal, Reply, Request
from limbeck.competition.pool import Pool
from limbeck.competition.pool_records import Assessment, Refused, Result
from limbeck.competition.rules import AskingConfig

MOST_REFUSED = 0.1
"""Share of one step's calls past which so many refusals stop the run: something is wrong with more than a picture."""

SURELY_REFUSED = 50
"""So many refusals, and more of them than answers, stop a step before it has asked everything."""

FIRST_REPLIES = 50
"""So many replies show whether an assessor's scores can be read."""

LEAST_READ = 0.1
"""Share of its first replies below which they cannot."""

Key = TypeVar("Key")
Call = tuple[Request, Callable[[Reply], Result], Callable[[str], Refused]]
"""What is asked, and what the pool keeps of a reply or of a refusal's reason."""


class CompetitionError(AskingError):
    """A competition that cannot go on; the message says why, and the pool has all that was said."""


def ask(
    pool: Pool,
    asker: Asker,
    writing: AskingConfig,
    calls: Mapping[Key, Call],
    missing: Collection[Key],
    name: str,
    *,
    progress: bool,
    kept: Callable[[Result], None] = lambda result: None,
) -> None:
    """Ask for what is missing of `calls`. Raises CompetitionError where too much is refused.

    `kept` is given every reply when the pool has it, and may raise to end the asking. Calls that are done are named
    too: how a model of this process batches them decides what it samples.
    """
    outcomes = {request.id: (reply, refuse) for request, reply, refuse in calls.values()}
    done = {request.id for key, (request, _, _) in calls.items() if key not in missing}
    requests = [request for request, _, _ in calls.values()]
    requests.sort(key=lambda request: request.image.key if request.image else "")  # servers keep a picture's prefix
    refused: list[str] = []
    answered, hopeless = 0, False
    asking = asker.ask(requests, temperature=writing.temperature, done=done)
    bar = tqdm(total=len(calls), initial=len(done), desc=name, unit="call", disable=not progress)
    with closing(asking), bar:
        for request, outcome in asking:
            keep, refuse = outcomes[request.id]
            if isinstance(outcome, Refusal):
                refused.append(outcome.reason)
                pool.add(refuse(outcome.reason))
            else:
                answered += 1
                result = keep(outcome)
                pool.add(result)
                kept(result)
            bar.update()
            hopeless = len(refused) >= SURELY_REFUSED and len(refused) > answered
            if hopeless:
                break
    if hopeless or len(refused) > max(1, MOST_REFUSED * len(calls)):
        raise CompetitionError(
            f"{name}: {len(refused)} of {len(calls)} calls to {asker.name} came to nothing; "
            f"{counted(Counter(refused))}. "
            "They are kept in the pool, and the same command goes on without them; `limbeck pool forget` lets them be "
            "asked again"
        )


class Legible:
    """Counts of how many replies of an assessor, each asked for the first time, scores can be read."""

    def __init__(self, name: str, known: Iterable[Assessment]) -> None:
        """`known` are in the pool already. Raises CompetitionError as `see` does."""
        self._name = name
        self._read = self._total = 0
        self._unread = ""
        for each in known:
            self._count(each)
        self._check()

    def see(self, result: Result) -> None:
        """Count a reply. Raises CompetitionError where too few can be read, and shows one of the others."""
        assert isinstance(result, Assessment)
        self._count(result)
        self._check()

    def _count(self, result: Assessment) -> None:
        if result.attempt == 0:
            self._total += 1
            self._read += result.scores is not None
        if result.scores is None:
            self._unread = result.text

    def _check(self) -> None:
        if self._total >= FIRST_REPLIES and self._read < LEAST_READ * self._total:
            shown = self._unread if len(self._unread) <= 500 else f"{self._unread[:500]}..."
            raise CompetitionError(
                f"{self._name}: scores can be read in {self._read} of {self._total} replies. One of the others is "
                f"{shown!r}. Give the assessor another prompt (`competition.prompts.assessor`), with which this run "
                "goes on, or name another assessor in a recipe with an `output` of its own"
            )


def counted(reasons: Mapping[str, int]) -> str:
    """The commonest reasons, for a message."""
    return "; ".join(f"{count} times: {reason}" for reason, count in Counter(reasons).most_common(3))
