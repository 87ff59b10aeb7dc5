"""A server of the OpenAI protocol that is slow and faulty on purpose, for benchmarks/compete_load.py.

It answers `--slots` calls at once and lets the others wait; each takes `--seconds` on average. Of the calls that it
takes a share fails with status 500, another gets garbage with status 200. Each call that ended is a line of `--log`:
what came of it, its prompt, how long it was in a slot, when. Killed and started anew it goes on at its port and log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path

GARBAGE = ('{"choices": []}', "<html>bad gateway</html>", '{"choices": [{"message": {"content": null}}]}', '{"id": "x"')


class SlowServer:
    """One life of the server."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._slots = asyncio.Semaphore(options.slots)
        self._log = Path(options.log).open("a", buffering=1)  # noqa: SIM115 - open as long as the process
        self._random = random.Random(options.seed)

    async def serve(self) -> None:
        """Serve until killed."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", self._options.port, backlog=1024)
        self._note("ready", "")
        async with server:
            await server.serve_forever()

    def _note(self, event: str, what: str, seconds: float = 0.0) -> None:
        print(json.dumps([event, what, seconds, time.time()]), file=self._log)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                lengths = [line.split(":")[1] for line in lines if line.lower().startswith("content-length:")]
                body = await reader.readexactly(int(lengths[0])) if lengths else b""
                if lines[0].startswith("GET"):
                    await _send(writer, 200, '{"data": [{"id": "slow"}]}')
                else:
                    await self._answer(writer, json.loads(body)["messages"][0]["content"][-1]["text"])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, prompt: str) -> None:
        async with self._slots:
            start = time.monotonic()
            await asyncio.sleep(self._options.seconds * self._random.uniform(0.5, 1.5))
            busy = time.monotonic() - start
        chance = self._random.random()
        if chance < self._options.fail:
            self._note("failed", prompt, busy)
            await _send(writer, 500, '{"error": {"message": "on purpose"}}')
        elif chance < self._options.fail + self._options.garbage:
            self._note("garbage", prompt, busy)
            await _send(writer, 200, self._random.choice(GARBAGE))
        else:
            usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
            choice = {"index": 0, "message": {"role": "assistant", "content": prompt}, "finish_reason": "stop"}
            await _send(writer, 200, json.dumps({"choices": [choice], "usage": usage}))
            self._note("delivered", prompt, busy)


async def _send(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    data = text.encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--fail", type=float, default=0.05)
    parser.add_argument("--garbage", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(SlowServer(parser.parse_args()).serve())


if __name__ == "__main__":
    main()
