"""One call to an OpenAI-compatible server, and what its answer means.

Of what can go wrong four kinds are told apart: the request cannot be answered (a `Refusal`), this try came to nothing
(`TryAgain`), the server wants a rest (`Limited`), and the recipe or key is wrong (`AskingError`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from pydantic import BaseModel, Field, ValidationError

from limbeck.competition.asking import AskingError, EndpointGone, Refusal, Reply

REFUSED = {400, 413, 415, 422}
"""Statuses that speak of one request: a picture the model cannot take, or one too long."""

AGAIN = {408, 409, 425}
"""Statuses that a later try may not meet, beside 429 and all from 500."""

AWAY = {502, 503, 504}
"""What a proxy says whose server is not there. Any other status comes from a server that is: even a list of models may
fail with 500 while calls go well (`transformers serve` without a model cache)."""


class TryAgain(Exception):
    """A try that came to nothing; another may do better."""

    def __init__(self, reason: str, *, broken_connection: bool = False) -> None:
        super().__init__(reason)
        self.broken_connection = broken_connection


class Limited(Exception):
    """The server is asked too much; `seconds` until it may be asked again, None where it does not say."""

    def __init__(self, reason: str, seconds: float | None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Key:
    """A key out of the environment. It is sent, and never printed: nor by `repr`, nor in what a server echoes."""

    def __init__(self, variable: str | None) -> None:
        """Raises AskingError where the variable is named and not set."""
        self._variable = variable
        self._value = None if variable is None else os.environ.get(variable, "").strip()
        if self._value == "":
            raise AskingError(f"key_env: the environment has no variable {variable}; set it to the server's key")

    @property
    def value(self) -> str:
        """What is sent. Servers without keys take any."""
        return self._value or "none"

    @property
    def advice(self) -> str:
        """What to do where a server takes offence at it."""
        if self._variable is None:
            return "No key was sent: name the environment variable that has it as `key_env`"
        return f"The key sent is the one in the environment variable {self._variable}: is it right, and may it do this?"

    def hide(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self._value, "***") if self._value else text


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def messages(prompt: str, picture: str | None) -> list[dict[str, Any]]:
    """The user's one turn; the picture, a data URL, stands before the text."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    if picture is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": picture}})
    return [{"role": "user", "content": parts}]


async def call(
    client: openai.AsyncOpenAI, body: Mapping[str, Any], *, timeout: float, where: str, key: Key
) -> Reply | Refusal:
    """One try; the reply's `seconds` are its own. `body` is the JSON of a chat completion, `where` names the server.

    Raises TryAgain, Limited, and AskingError where no other try will do better.
    """
    start = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            text = await client.post("/chat/completions", body=dict(body), cast_to=str)
    except (TimeoutError, openai.APITimeoutError):
        raise TryAgain(f"no answer within {timeout:g} s") from None
    except openai.APIConnectionError as error:
        reason = key.hide(str(error.__cause__ or error)) or type(error.__cause__ or error).__name__
        raise TryAgain(f"no connection: {reason}", broken_connection=True) from None
    except openai.APIStatusError as error:
        return _refused(error, where, key)
    return _reply(text, time.monotonic() - start, key)


def _refused(error: openai.APIStatusError, where: str, key: Key) -> Refusal:
    """What an error status means; errors of later tries and of the recipe are raised."""
    status = error.status_code
    said = f"{status}: {key.hide(_first_words(error))}"
    if status in REFUSED:
        return Refusal(reason=said)
    if status == 429 and error.code == "insufficient_quota":
        raise EndpointGone(f"{where} {said}: the account has nothing left. What was answered is kept") from None
    rest = _seconds_to_rest(error.response.headers)
    if status == 429 or (status == 503 and rest is not None):
        raise Limited(said, rest) from None
    if status in AGAIN or status >= 500:
        raise TryAgain(said, broken_connection=status in AWAY) from None
    if status in (401, 403):
        raise AskingError(f"{where} {said}\n{key.advice}") from None
    if status == 404:
        raise AskingError(f"{where} {said}\nIt has no such model or no /chat/completions under this address") from None
    raise AskingError(f"{where} {said}") from None


def _first_words(error: openai.APIStatusError) -> str:
    """What the server says, short: its JSON's message, or the beginning of its text."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    text = " ".join(str(body or error.message).split())
    return text if len(text) <= 300 else text[:297] + "..."


def _seconds_to_rest(headers: Mapping[str, str]) -> float | None:
    """The header Retry-After in seconds, whichever way it is written; None without one that can be read."""
    said = headers.get("retry-after-ms") or headers.get("retry-after")
    if not said:
        return None
    try:
        return max(0.0, float(said) / (1000 if headers.get("retry-after-ms") else 1))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _reply(text: str, seconds: float, key: Key) -> Reply | Refusal:
    """The reply in a server's JSON, without the key where it is echoed. Raises TryAgain where it is none."""
    try:
        found = _Completion.model_validate_json(key.hide(text))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise TryAgain(f"a broken answer{f', {place}' if place else ''}: {first['msg']}") from None
    choice = found.choices[0]
    if choice.finish_reason == "content_filter":
        return Refusal(reason="the server's content filter")
    if choice.message.refusal and not choice.message.content:
        return Refusal(reason=f"the model refuses: {choice.message.refusal}")
    if not choice.message.content and choice.finish_reason == "length":
        return Refusal(reason="nothing was said within max_new_tokens; a model that thinks first needs more of them")
    if choice.message.content is None:
        raise TryAgain(f"a broken answer: no content (finish_reason {choice.finish_reason})")
    if choice.finish_reason not in (None, "stop", "length"):
        raise TryAgain(f"a broken answer: finish_reason {choice.finish_reason}")
    usage = found.usage or _Usage()
    return Reply(
        text=choice.message.content,
        cut=choice.finish_reason == "length",
        prompt_tokens=usage.prompt_tokens,
        new_tokens=usage.completion_tokens,
        seconds=seconds,
    )
