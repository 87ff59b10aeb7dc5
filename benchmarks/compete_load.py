"""Role calls against a server that is slow, fails, talks garbage and dies once: what is answered, lost, or asked twice.

The server (slow_server.py, a process of its own on this machine) answers 16 calls at once in 0.4 s each, fails in 5 %
of them, sends garbage in 2 %, and is killed with SIGKILL on the way, to be started again two seconds later. It counts
what it delivered by the call's own number. Capacity used is the time its slots were busy, of the time they were there
between the first call and the last. Beside limbeck's `Endpoints` runs what one writes in an hour: a semaphore around
the openai client with its own retries.

    python benchmarks/compete_load.py
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from harness import Claim, at_least, parser, publish

from limbeck.competition.asking import Refusal, Reply, Request
from limbeck.competition.endpoints import Endpoints, EndpointsConfig

SLOTS, SECONDS = 16, 0.4
AT_ONCE = 20
"""Calls in flight: some more than slots, so that the server always has one waiting."""
DEAD_SECONDS = 2.0
SERVER = Path(__file__).with_name("slow_server.py")


@dataclass
class Outcome:
    """What came of the calls, as the one who asked saw it."""

    answered: Counter[str]
    refused: int = 0
    wrong: int = 0
    """answers to another call, or to none"""


class Life:
    """The server's process, which can be killed and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "served.jsonl"
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._lives = 0
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._lives += 1
        options = {"port": self.port, "log": self.log, "slots": SLOTS, "seconds": SECONDS, "seed": self._lives}
        command = [sys.executable, str(SERVER), *(f"--{name}={value}" for name, value in options.items())]
        self.process = subprocess.Popen(command)
        while not self.log.exists() or len(self.events("ready")) < self._lives:
            if self.process.poll() is not None:
                raise RuntimeError(f"{SERVER.name} ended with {self.process.returncode}")
            time.sleep(0.02)

    def kill(self) -> float:
        """Kill it. Gives the time."""
        self.process.kill()
        self.process.wait()
        return time.time()

    def events(self, kind: str) -> list[tuple[str, float, float]]:
        """(prompt, seconds busy, when) of each event of a kind."""
        lines = [line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [(what, busy, when) for event, what, busy, when in map(json.loads, lines) if event == kind]


def by_limbeck(url: str, calls: int) -> Outcome:
    """Through `Endpoints`, as the competition asks."""
    config = EndpointsConfig(endpoint=url, model="slow", concurrency=AT_ONCE, timeout=30, patience=60)
    requests = [Request(id=str(n), prompt=f"call {n}", image=None, max_new_tokens=20, seed=n) for n in range(calls)]
    outcome = Outcome(Counter())
    for request, reply in Endpoints(config).ask(requests, temperature=0.5):
        match reply:
            case Reply(text=text):
                outcome.answered[request.id] += 1
                outcome.wrong += text != request.prompt
            case Refusal():
                outcome.refused += 1
    return outcome


def by_client_alone(url: str, calls: int) -> Outcome:
    """Through the openai client with its own retries, under a semaphore."""

    async def ask() -> Outcome:
        outcome, bound = Outcome(Counter()), asyncio.Semaphore(AT_ONCE)

        async def one(client: openai.AsyncOpenAI, number: int) -> None:
            said: Any = [{"role": "user", "content": [{"type": "text", "text": f"call {number}"}]}]
            async with bound:
                try:
                    found = await client.chat.completions.create(model="slow", messages=said, max_tokens=20)
                    text = found.choices[0].message.content
                except (openai.OpenAIError, ValueError, TypeError, IndexError, AttributeError):
                    outcome.refused += 1
                    return
            outcome.answered[str(number)] += 1
            outcome.wrong += text != f"call {number}"

        async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=30, max_retries=5) as client:
            await asyncio.gather(*(one(client, number) for number in range(calls)))
        return outcome

    return asyncio.run(ask())


def measure(name: str, ask: Callable[[str, int], Outcome], calls: int) -> dict[str, Any]:
    """One run against a server of its own, which dies when two fifths are delivered."""
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder))
        death: list[tuple[float, float]] = []

        def dies() -> None:
            while len(life.events("delivered")) < 0.4 * calls:
                time.sleep(0.02)
            killed = life.kill()
            time.sleep(DEAD_SECONDS)
            life.start()
            death.append((killed, time.time()))

        reaper = threading.Thread(target=dies, daemon=True)
        start = time.time()
        reaper.start()
        outcome = ask(life.url, calls)
        end = time.time()
        reaper.join()
        life.kill()
        delivered, failed, garbage = (life.events(kind) for kind in ("delivered", "failed", "garbage"))
    (killed, back) = death[0]
    busy = sum(seconds for _, seconds, _ in [*delivered, *failed, *garbage])
    each = Counter(prompt for prompt, _, _ in delivered)
    return {
        "way": name,
        "calls": calls,
        "answered": len(outcome.answered),
        "given up": outcome.refused,
        "unaccounted": calls - len(outcome.answered) - outcome.refused,
        "wrong": outcome.wrong + sum(count - 1 for count in outcome.answered.values()),
        "delivered twice": sum(count - 1 for count in each.values()),
        "failed": len(failed),
        "garbage": len(garbage),
        "seconds": end - start,
        "capacity used": busy / (SLOTS * ((end - start) - (back - killed))),
    }


def claims_of(row: dict[str, Any]) -> Iterator[Claim]:
    """What is wanted of limbeck's own way."""
    accounted = row["answered"] + row["given up"]
    yield Claim("every call is answered or accounted for", f"{row['calls']}", f"{accounted}", accounted == row["calls"])
    yield Claim("answers that are wrong or come twice", "0", f"{row['wrong']}", row["wrong"] == 0)
    yield Claim("answers the server delivered twice", "0", f"{row['delivered twice']}", row["delivered twice"] == 0)
    yield at_least("share of the server's capacity used", 0.9, row["capacity used"])


def main() -> None:
    """Measure both ways and publish."""
    arguments = parser(__doc__)
    arguments.set_defaults(rounds=1)
    options = arguments.parse_args()
    calls = 400 if options.smoke else 2000
    ways = {"limbeck": by_limbeck, "openai client alone": by_client_alone}
    rows = [measure(name, ask, calls) for name, ask in ways.items()]
    publish("compete_load", rows, list(claims_of(rows[0])), options)


if __name__ == "__main__":
    main()
