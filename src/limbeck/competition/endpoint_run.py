"""One run of questions to servers: an event loop in a thread of its own, which workers, retries and clock share."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import openai
from PIL import Image
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from limbeck.competition.asking import AskingError, Refusal, Reply, Request
from limbeck.competition.balance import Balance, Server
from limbeck.competition.calls import AWAY, Key, Limited, TryAgain, call, messages
from limbeck.competition.data_urls import data_url
from limbeck.competition.endpoint_config import EndpointsConfig
from limbeck.data.examples import BrokenImage, MadeImage

PROBE_SECONDS = 10.0
"""How long a server may take to say that it is there."""

WHITE = MadeImage("white", lambda: Image.new("RGB", (64, 64), "white"))
"""What a server is asked about that refuses everything."""


class Run:
    """The life of one `ask`: a thread's event loop that fills `found`, and ends it with None or an exception."""

    def __init__(self, config: EndpointsConfig, key: Key, requests: Sequence[Request], temperature: float) -> None:
        self.found: queue.Queue[tuple[Request, Reply | Refusal] | BaseException | None] = queue.Queue()
        self._config = config
        self._key = key
        self._requests = requests
        self._temperature = temperature
        self._servers = [Server(url) for url in config.urls]
        self._workers = min(
            2 * config.concurrency * len(config.urls), len(requests)
        )  # half of them may be waiting to retry
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._picture = lru_cache(maxsize=32)(data_url)
        self._clock = _Clock()
        self._proven = asyncio.Lock()
        self._cancelled = threading.Event()
        self._stop: Callable[[], object] | None = None

    def work(self) -> None:
        """Ask everything. The target of the thread."""
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self.found.put(error)
        else:
            self.found.put(None)
        finally:
            self._encoder.shutdown(cancel_futures=True)

    def cancel(self) -> None:
        """End what is open; from any thread, at any time."""
        self._cancelled.set()
        if self._stop is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                self._stop()

    async def _main(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        if self._cancelled.is_set():
            return
        async with AsyncExitStack() as stack:
            self._clients = {server: await stack.enter_async_context(self._client(server)) for server in self._servers}
            config = self._config
            self._balance = Balance(
                self._servers, concurrency=config.concurrency, patience=config.patience, alive=self._alive
            )
            self._balance.start()
            todo = iter(self._requests)
            workers = [asyncio.create_task(self._worker(todo)) for _ in range(self._workers)]
            try:
                done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                await self._balance.stop()

    def _client(self, server: Server) -> openai.AsyncOpenAI:
        timeout = openai.Timeout(self._config.timeout, connect=min(PROBE_SECONDS, self._config.timeout))
        client = openai.AsyncOpenAI(base_url=server.url, api_key=self._key.value, timeout=timeout, max_retries=0)
        client.organization = client.project = client.admin_api_key = None  # of the environment, not for others
        return client

    async def _alive(self, server: Server) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._clients[server].get("/models", cast_to=object)
        except openai.APIStatusError as error:
            return error.status_code not in AWAY
        except (TimeoutError, openai.APIConnectionError) as error:
            server.trouble = self._key.hide(str(error.__cause__ or error)) or type(error).__name__
            return False
        except ValueError:  # answers, if not in JSON
            return True
        return True

    async def _worker(self, todo: Iterator[Request]) -> None:
        for request in todo:
            while self.found.qsize() > self._workers:  # who asked is slow: keep nothing that a kill would lose
                await asyncio.sleep(0.02)
            self.found.put((request, await self._answer(request)))

    async def _answer(self, request: Request) -> Reply | Refusal:
        picture = None
        if request.image is not None:
            try:
                loop = asyncio.get_running_loop()
                picture = await loop.run_in_executor(self._encoder, self._picture, request.image)
            except BrokenImage as error:
                return Refusal(reason=str(error))
        retrying = AsyncRetrying(
            stop=stop_after_attempt(1 + self._config.retries),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            retry=retry_if_exception_type(TryAgain),
            reraise=True,
        )
        call = _Open(request, self._body(request, picture))
        try:
            return await retrying(self._once, call)
        except TryAgain as error:
            return Refusal(reason=f"no answer in {1 + self._config.retries} tries; the last: {error}")

    def _body(self, request: Request, picture: str | None) -> dict[str, Any]:
        body = {
            **self._config.extra,
            "model": self._config.model,
            "messages": messages(request.prompt, picture),
            "temperature": self._temperature,
            self._config.length_field: request.max_new_tokens,
        }
        return body | ({"seed": request.seed % 2**31} if self._config.send_seed else {})

    async def _once(self, open: _Open) -> Reply | Refusal:
        """One try at one server, the next where a server wants a rest."""
        while True:
            server = await self._balance.take(open.avoid)
            start = self._clock.begin()
            try:
                found = await self._call(server, open.body)
                if isinstance(found, Refusal):
                    await self._check_not_all_are_refused(server, open.request, found)
                self._balance.good(server)
            except Limited as error:
                self._balance.limited(server, str(error), error.seconds)
                continue
            except TryAgain as error:
                open.avoid = server
                self._balance.failed(server, str(error), at_once=error.broken_connection)
                raise
            finally:
                open.seconds += self._clock.end(start)
                self._balance.give_back(server)
            return replace(found, seconds=open.seconds) if isinstance(found, Reply) else found

    async def _call(self, server: Server, body: Mapping[str, Any]) -> Reply | Refusal:
        where = f"{server.url}, model {self._config.model}:"
        return await call(self._clients[server], body, timeout=self._config.timeout, where=where, key=self._key)

    async def _check_not_all_are_refused(self, server: Server, request: Request, found: Refusal) -> None:
        """A server that has answered nothing yet may refuse all there is, for its model or a field: ask it plainly."""
        async with self._proven:
            if server.answered:
                return
            image = None if request.image is None else data_url(WHITE)
            plain = replace(request, prompt="What is this?", max_new_tokens=1)
            if isinstance(await self._call(server, self._body(plain, image)), Refusal):
                raise AskingError(
                    f"{server.url}, model {self._config.model}: it refuses even a plain question"
                    f"{'' if image is None else ' about a white picture'}: {found.reason}"
                )
            server.answered += 1


@dataclass
class _Open:
    """A request that is being asked."""

    request: Request
    body: Mapping[str, Any]
    avoid: Server | None = None
    """where the last try failed"""
    seconds: float = 0.0


class _Clock:
    """Shares wall time among what runs at once: the shares of all calls add up to the time in which any ran."""

    def __init__(self) -> None:
        self._running = 0
        self._each = 0.0
        self._now = time.monotonic()

    def begin(self) -> float:
        """The mark to hand to `end`."""
        self._tick(1)
        return self._each

    def end(self, mark: float) -> float:
        """Seconds of its own, of what began at the mark."""
        self._tick(-1)
        return self._each - mark

    def _tick(self, more: int) -> None:
        now = time.monotonic()
        self._each += (now - self._now) / max(self._running, 1)
        self._now = now
        self._running += more
