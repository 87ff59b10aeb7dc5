"""Asking a role for what is missing, and keeping every outcome in the pool as it comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from typing import TypeVar

from tqdm import tqdm

from limbeck.competition.asking import Asker, AskingError, Refusal, Reply, Request
from limbeck.competition.pool import Pool
from limbeck.competition.pool_records import Refused, Result
from limbeck.competition.rules import AskingConfig

MOST_REFUSED = 0.1
"""Share of one step's calls past which so many refusals stop the run: something is wrong with more than a picture."""

SURELY_REFUSED = 50
"""So many refusals, and more of them than answers, stop a step before it has asked everything."""

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
) -> None:
    """Ask for what is missing of `calls`. Raises CompetitionError where too much is refused.

    Calls that are done are named too: how a model of this process batches them decides what it samples.
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
                pool.add(keep(outcome))
            bar.update()
            hopeless = len(refused) >= SURELY_REFUSED and len(refused) > answered
            if hopeless:
                break
    if hopeless or len(refused) > max(1, MOST_REFUSED * len(calls)):
        raise CompetitionError(
            f"{name}: {asker.name} refused {len(refused)} of {len(calls)} calls; {counted(Counter(refused))}. "
            "They are kept in the pool, and the same command goes on without them; `limbeck pool forget` lets them be "
            "asked again"
        )


def counted(reasons: Mapping[str, int]) -> str:
    """The commonest reasons, for a message."""
    return "; ".join(f"{count} times: {reason}" for reason, count in Counter(reasons).most_common(3))
