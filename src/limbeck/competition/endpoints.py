"""A model behind one or several OpenAI-compatible servers (vLLM, SGLang, `transformers serve`, a commercial API).

The servers are asked from one event loop in a thread of its own; who asks sees a plain iterator.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Container, Generator, Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import openai

from limbeck.competition.asking import AskingError, EndpointGone, Refusal, Reply, Request
from limbeck.competition.calls import AWAY, Key
from limbeck.competition.endpoint_config import EndpointsConfig
from limbeck.competition.endpoint_run import PROBE_SECONDS, Run

__all__ = ["Endpoints", "EndpointsConfig"]

logger = logging.getLogger(__name__)


class Endpoints:
    """An `Asker` over servers: bounded, balanced, patient, and each request answered once."""

    def __init__(self, config: EndpointsConfig) -> None:
        """Raises AskingError where the key's environment variable is not set. Connects to nothing yet."""
        self._config = config
        self._key = Key(config.key_env)
        self.doubts: list[str] = []
        """what the servers say that may be wrong, and which do not answer, once `fingerprint` has asked them"""

    @property
    def name(self) -> str:
        """The model's name."""
        return self._config.model

    @property
    def fingerprint(self) -> str:
        """The model's name, and with `@` what the servers say it was made from where they say more (vLLM's `root`).

        Where the servers stand plays no part: the same model at another address goes on with the same pool. Raises
        EndpointGone where no server answers, AskingError where they say different things.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        said: dict[str, str] = {}
        missing: list[str] = []
        for url in self._config.urls:
            client = openai.OpenAI(base_url=url, api_key=self._key.value, timeout=PROBE_SECONDS, max_retries=0)
            client.organization = client.project = client.admin_api_key = None  # of the environment, not for others
            try:
                known = _models(client.get("/models", cast_to=object), url)
                said[url] = _made_from(known, self._config.model)
                if known and self._config.model not in known:
                    names = ", ".join(map(str, list(known)[:8]))
                    self.doubts.append(f"{url} lists no model {self._config.model}; it has {names}")
            except openai.APIStatusError as error:
                if error.status_code in (401, 403):
                    raise AskingError(f"{url} {error.status_code}: {self._key.advice}") from None
                if error.status_code in AWAY:
                    missing.append(f"{url}: status {error.status_code}")
                else:
                    said[url] = self._config.model
            except ValueError as error:  # no JSON
                raise AskingError(f"{url}/models: wanted {_LIST}, found what is no JSON ({error})") from None
            except openai.APIConnectionError as error:
                missing.append(f"{url}: {self._key.hide(str(error.__cause__ or error))}")
        if not said:
            raise EndpointGone(
                f"{self.name}: no server answers; start it, or correct the address: {'; '.join(missing)}"
            )
        if len(set(said.values())) > 1:
            each = ", ".join(f"{url}: {found}" for url, found in said.items())
            raise AskingError(f"the servers have different models under the name {self.name}: {each}")
        self.doubts += [f"{each}: it does not answer, so the others are asked" for each in missing]
        for doubt in self.doubts:
            logger.warning("%s", doubt)
        return next(iter(said.values()))

    def ask(
        self, requests: Sequence[Request], *, temperature: float, done: Container[str] = ()
    ) -> Generator[tuple[Request, Reply | Refusal], None, None]:
        """Every request with its reply or refusal, as they finish; ending the iteration early cancels what is open.

        Calls are begun in the order of the requests, so that requests about one picture that stand together can share
        a server's prefix cache. Raises ValueError where two requests have one id, EndpointGone where no server is left,
        and AskingError where address, model or key are wrong.
        """
        twice = [id for id, count in Counter(request.id for request in requests).items() if count > 1]
        if twice:
            raise ValueError(f"{self.name}: two requests with the id {twice[0]!r}")
        return self._answers([request for request in requests if request.id not in done], temperature)

    def _answers(
        self, requests: Sequence[Request], temperature: float
    ) -> Generator[tuple[Request, Reply | Refusal], None, None]:
        if not requests:
            return
        run = Run(self._config, self._key, requests, temperature)
        thread = threading.Thread(target=run.work, name=f"asking {self.name}", daemon=True)
        thread.start()
        try:
            while (found := run.found.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            run.cancel()
            thread.join()


_LIST = 'a list of models, {"data": [{"id": ...}, ...]}'


def _models(listed: object, url: str) -> dict[str, dict[str, Any]]:
    """A server's models by name; none where it says something else. Raises AskingError where its list is none."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    if entries is not None and not isinstance(entries, list):
        raise AskingError(f"{url}/models: wanted {_LIST}, found {type(entries).__name__} for `data`")
    models = [entry for entry in entries or [] if isinstance(entry, dict)]
    return {entry["id"]: entry for entry in models if isinstance(entry.get("id"), str)}


def _made_from(known: Mapping[str, Mapping[str, Any]], model: str) -> str:
    """The fingerprint of a model out of a server's models."""
    root = known.get(model, {}).get("root")
    name = PurePosixPath(root).name if isinstance(root, str) else ""
    return f"{model}@{name}" if name and name != PurePosixPath(model).name else model
