"""Which of several servers takes the next call: the one with the least in flight, of those that are alive.

A server that drops connections, or fails again and again, is taken out and probed (`GET /v1/models`, with growing
pauses) until it answers again. One that says "too many requests" rests as long as it asks for. When none has been of
use for `patience` seconds, all are given up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from limbeck.competition.asking import EndpointGone

logger = logging.getLogger(__name__)

SUSPECT_AFTER = 8
"""Failures in a row, without a good answer between, after which a server is probed."""


class Server:
    """One endpoint: what it does now, and what is known of its health."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.in_flight = 0
        self.answered = 0
        self.failures = 0
        """in a row"""
        self.out = False
        self.rests_until = 0.0
        self.rests = 0
        """in a row"""
        self.trouble = ""
        """what was last wrong, for people"""


class Balance:
    """Hands out servers. Lives in one event loop, between `start` and `stop`."""

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        concurrency: int,
        patience: float,
        alive: Callable[[Server], Awaitable[bool]],
    ) -> None:
        """`concurrency` bounds the calls in flight at each server; `alive` asks a server whether it is there."""
        self.servers = list(servers)
        self._concurrency = concurrency
        self._patience = patience
        self._alive = alive
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_good = 0.0
        self._gone: str | None = None

    def start(self) -> None:
        """Begin to count patience, and to watch that it is not spent."""
        self._last_good = time.monotonic()
        self._spawn(self._watch())

    async def stop(self) -> None:
        """End what runs in the background."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take(self, avoid: Server | None = None) -> Server:
        """A server for one call, as soon as one is free; not `avoid` if there is another. Raises EndpointGone."""
        while True:
            if self._gone is not None:
                raise EndpointGone(self._gone)
            now = time.monotonic()
            free = [server for server in self.servers if self._usable(server, now)]
            if free:
                chosen = min(free, key=lambda server: (server is avoid, server.in_flight, server.answered))
                chosen.in_flight += 1
                return chosen
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            await place

    def give_back(self, server: Server) -> None:
        """The call is over, however it ended."""
        server.in_flight -= 1
        self._wake(1)

    def good(self, server: Server) -> None:
        """The server gave an answer or refused one request with reason: it is well."""
        server.answered += 1
        server.failures = server.rests = 0
        self._last_good = time.monotonic()

    def failed(self, server: Server, trouble: str, *, at_once: bool) -> None:
        """A call came to nothing; `at_once` where the connection broke, so that the server is probed right away."""
        server.trouble = trouble
        server.failures += 1
        if (at_once or server.failures >= SUSPECT_AFTER) and not server.out:
            server.out = True
            self._spawn(self._probe(server))

    def limited(self, server: Server, trouble: str, seconds: float | None) -> None:
        """The server wants a rest of at least so many seconds; the rests grow while it goes on to say so."""
        now = time.monotonic()
        resting = server.rests_until > now  # said by several calls of one moment
        if resting and seconds is None:
            return
        server.trouble = trouble
        growing = min((1.0 if seconds is None else 0.25) * 2.0**server.rests, 60.0)
        pause = max(seconds or 0.0, growing) * (1 + random.random() / 4)
        server.rests += not resting
        server.rests_until = max(server.rests_until, now + pause)
        asyncio.get_running_loop().call_later(pause, self._wake, len(self._waiting) + self._concurrency)

    def _usable(self, server: Server, now: float) -> bool:
        return not server.out and server.rests_until <= now and server.in_flight < self._concurrency

    def _wake(self, number: int) -> None:
        for _ in range(min(number, len(self._waiting))):
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)

    async def _probe(self, server: Server) -> None:
        """Ask a suspected server until it is there."""
        pause = 0.2
        while not await self._alive(server):
            if pause == 0.2:
                logger.warning("%s is taken out: %s", server.url, server.trouble)
            await asyncio.sleep(pause * (0.5 + random.random() / 2))
            pause = min(1.5 * pause, 10.0)
        if pause > 0.2:
            logger.warning("%s is back", server.url)
        server.out = False
        server.failures = 0
        self._wake(len(self._waiting))

    async def _watch(self) -> None:
        """Give up when nothing is in flight, nobody can take a call, and patience ends before anybody can."""
        while True:
            await asyncio.sleep(min(0.5, self._patience / 10))
            now = time.monotonic()
            if any(server.in_flight or self._usable(server, now) for server in self.servers):
                continue
            soonest = min(max(server.rests_until, now) for server in self.servers)
            if soonest - self._last_good > self._patience:
                said = "; ".join(f"{server.url}: {server.trouble}" for server in self.servers)
                self._gone = (
                    f"no answer for {now - self._last_good:.0f} s, and patience is {self._patience:.0f} s. "
                    f"{said}. What was answered is kept; the same command goes on when a server is there again"
                )
                self._wake(len(self._waiting))
                return

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _quietly(work: Awaitable[None]) -> None:
    with suppress(asyncio.CancelledError):
        await work
