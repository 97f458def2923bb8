"""A running server that scores a reference, instead of loading its model here."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mrpo_pipeline.settings_base import Name, Settings

_EXPECTED = "the address of a running vLLM, such as http://host:8000"


class Server(Settings):
    """A running vLLM, or a load balancer before several; as text, its `url` alone."""

    url: Name
    """`http://host:port` (or https) of the server, without a password or key: see `api_key_env`."""
    model: Name | None = None
    """The model's name as served (`vllm serve --served-model-name`). Null: the only served model, or the one served as the
    reference's `model`."""
    api_key_env: str | None = None
    """The environment variable that holds the API key, sent as a bearer token. The key itself is read from there alone."""
    concurrency: int = Field(16, ge=1, le=1024)
    """Concurrent requests."""
    timeout: float = Field(600.0, gt=0)
    """Seconds to wait for one answer."""
    retries: int = Field(6, ge=0, le=100)
    """How often a request is sent again after a lost connection, HTTP 429 or 5xx: after 1, 2, 4, … seconds, 30 at most."""

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        if fault := _fault(url):
            raise ValueError(f"{_EXPECTED}, {fault}")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not (name.isidentifier() and name.isascii()):
            raise ValueError("the name of an environment variable (the key is read from it, and stands nowhere else)")
        return name

    @property
    def address(self) -> str:
        """The base URL of all routes, without a trailing slash and without the ``/v1`` that OpenAI clients use."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def on_this_machine(self) -> bool:
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")


def _fault(url: str) -> str | None:
    """The fault of a server's URL, as a clause; None if it is valid."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "with a port between 0 and 65535"
    if "@" in parts.netloc:
        return "without user or password (a key comes from the environment: `api_key_env`)"
    if parts.query or parts.fragment:
        return "without ? or #"
    return (
        None
        if parts.scheme in ("http", "https") and parts.hostname and not set(url) & set(" \t\r\n")
        else "and nothing else"
    )
