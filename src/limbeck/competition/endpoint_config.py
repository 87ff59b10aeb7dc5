"""What a recipe says of servers."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, JsonValue, field_validator

from limbeck.config import Section


class EndpointsConfig(Section):
    """A role filled by servers: `{endpoint: http://localhost:8000/v1, model: llava-hf/llava-1.5-13b-hf}`."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a key may stand where it does not belong

    endpoint: str | list[str]
    """address of the server, or of several with the same model; without a path `/v1` is meant"""
    model: str = Field(min_length=1)
    """the model's name at the servers"""
    key_env: str | None = None
    """the environment variable that has the key; null sends none"""
    concurrency: int = Field(default=16, ge=1)
    """calls in flight at each server"""
    timeout: float = Field(default=120, gt=0)
    """seconds one try may take"""
    retries: int = Field(default=5, ge=0)
    """further tries after time-outs, broken connections, broken answers and server errors"""
    patience: float = Field(default=300, gt=0)
    """seconds without any server that answers, after which all are given up"""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """what the server calls the bound of new tokens"""
    send_seed: bool = True
    """send each request's seed; false for servers that know no such field"""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """further fields of every call, such as top_p"""

    @field_validator("endpoint")
    @classmethod
    def _addresses(cls, value: str | list[str]) -> str | list[str]:
        addresses = [value] if isinstance(value, str) else value
        if not addresses:
            raise ValueError("wanted an address or several, found none")
        for address in addresses:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(
                    f"wanted an address such as http://localhost:8000/v1, found {parts.hostname or value!r}"
                )
            if parts.path.rstrip("/").endswith("/completions"):
                raise ValueError(f"{address}: wanted the address that /chat/completions comes behind")
            if parts.username or parts.password or parts.query:
                raise ValueError(
                    f"{parts.hostname}: no name, password or query in an address; a key belongs into the environment "
                    "variable that key_env names"
                )
        if len({base_url(address) for address in addresses}) < len(addresses):
            raise ValueError("the same address twice")
        return value

    @field_validator("key_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError(
                "wanted the name of an environment variable, such as OPENAI_API_KEY (letters, digits and underscores), "
                "that has the key; the key itself belongs into no recipe, and this may be one, so it is not shown"
            )
        return value

    @field_validator("extra")
    @classmethod
    def _extra(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        own = {"model", "messages", "temperature", "seed", "max_tokens", "max_completion_tokens", "stream", "n"}
        if taken := sorted(own & value.keys()):
            raise ValueError(f"{taken[0]} is set by limbeck itself")
        return value

    @property
    def urls(self) -> list[str]:
        """Where the servers are, as the client takes it."""
        return [base_url(address) for address in ([self.endpoint] if isinstance(self.endpoint, str) else self.endpoint)]


def base_url(address: str) -> str:
    """Where the client's paths start: without a path of its own, the address's `/v1`."""
    address = address.rstrip("/")
    return address if urlsplit(address).path else f"{address}/v1"
