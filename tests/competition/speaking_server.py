"""A small HTTP server that speaks the OpenAI protocol and does what a script says."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Say:
    """What the server answers one call with."""

    status: int = 200
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    """close the connection instead"""


def completion(text: str | None, finish: str = "stop", **more: Any) -> Say:
    """A whole answer."""
    message = {"role": "assistant", "content": text} | more
    content = {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    return Say(text=json.dumps(content))


def prompt_of(body: dict[str, Any]) -> str:
    """The text of a call."""
    return body["messages"][0]["content"][-1]["text"]


class SpeakingServer:
    """`script(body, count)` says what comes of the `count`-th call with that prompt, from 1."""

    def __init__(self, script: Callable[[dict[str, Any], int], Say], models: Any = None, seconds: float = 0.0) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.calls: Counter[str] = Counter()
        self.most_at_once = 0
        self.probes = 0
        self.models = {"data": [{"id": "m", "object": "model"}]} if models is None else models
        self.sick = False
        """everything is answered with 502, as a proxy does whose server is away"""
        self._at_once = 0
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer._connections.add(self.connection)

            def finish(self) -> None:
                outer._connections.discard(self.connection)
                with suppress(OSError):
                    super().finish()

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.probes += 1
                listed = outer.models if isinstance(outer.models, str) else json.dumps(outer.models)
                self._send(Say(502, "away") if outer.sick else Say(text=listed))

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if not data:  # who asked has hung up
                    self.close_connection = True
                    return
                body = json.loads(data)
                with outer._lock:
                    outer.bodies.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer.calls[prompt_of(body)] += 1
                    count = outer.calls[prompt_of(body)]
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                time.sleep(seconds)
                say = Say(502, "away") if outer.sick else script(body, count)
                with outer._lock:
                    outer._at_once -= 1
                self._send(say)

            def _send(self, say: Say) -> None:
                if say.drop:
                    self.close_connection = True
                    return
                data = say.text.encode()
                with suppress(OSError):  # who asked may be gone
                    self._write(say, data)

            def _write(self, say: Say, data: bytes) -> None:
                self.send_response(say.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in say.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self._handler = Handler
        self.start(0)

    def start(self, port: int) -> None:
        """Listen, at any port where it is 0."""
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Die: listen no more, and break every connection."""
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
