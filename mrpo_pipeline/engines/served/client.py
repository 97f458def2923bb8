"""JSON over HTTP with one server: temporary failures are retried, all others raise an error."""

from __future__ import annotations

import logging
import os
import random
import threading
from typing import Any

import httpx2

from mrpo_pipeline.engines.base import NoServerError
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.server import Server

logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line for each request

CONNECT_SECONDS = 10.0
LONGEST_WAIT = 30.0
LONGEST_QUOTE = 300
_WRONG_KEY = 401  # not 403, which vLLM also returns for a disabled route
_TOO_MANY = 429


class RefusedError(Exception):
    """The server refused a request; another way to ask may work."""


class LostError(Exception):
    """No answer, or one that asks to retry. ``gone``: the server itself may have been down meanwhile."""

    def __init__(self, told: str, *, gone: bool = True, wait: float = 0.0) -> None:
        self.gone = gone
        self.wait = wait
        super().__init__(told)


class Client:
    """A client of one server, for any number of threads.

    Attributes:
        losses: how often the server was down; later answers may be another model's.
    """

    def __init__(self, name: str, server: Server) -> None:
        self._who = f"The server of reference {name} at {server.address}"
        self._place = f"references.{name}.server"
        self._server = server
        self._key = _key(self._place, server)
        self._closing = threading.Event()
        self.losses = 0
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(server.timeout, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=server.concurrency),
            trust_env=not server.on_this_machine,  # no proxy for a server on this machine
        )

    def once(self, method: str, route: str, body: Any = None) -> Any:
        """One request and its decoded answer. Raises RefusedError, LostError, and UserError where a retry cannot help."""
        try:
            answer = self._http.request(method, self._server.address + route, json=body)
        except httpx2.TimeoutException as error:
            raise LostError(f"no answer within {self._server.timeout:g} s ({type(error).__name__})") from None
        except httpx2.HTTPError as error:
            raise LostError(self.plain(str(error) or type(error).__name__)) from None
        return self._content(answer, f"{method} {route}")

    def post(self, route: str, body: Any) -> Any:
        """As ``once``, with retries while the server is down or busy.

        Raises:
            RunError: it stays down.
        """
        for tries in range(self._server.retries + 1):
            try:
                return self.once("POST", route, body)
            except LostError as error:
                lost = error
                self.losses += lost.gone
            wait = min(LONGEST_WAIT, max(lost.wait, 2.0**tries * random.uniform(0.75, 1.25)))
            if tries == self._server.retries or self._closing.wait(wait):
                break
        raise RunError(
            f"{self._who} does not answer any more ({lost}; attempts: {tries + 1}). What was scored is kept. Start it again, and "
            "run `mrpo score-refs` again: it scores what is missing, and only that."
        )

    def first(self, route: str) -> Any:
        """GET, before anything is scored.

        Raises:
            NoServerError: no server answers. UserError: one answers, but not as vLLM.
        """
        try:
            return self.once("GET", route)
        except (LostError, RefusedError) as error:
            raise NoServerError(
                f"{self._who} does not answer GET {route} ({error}): expected a running vLLM (`vllm serve MODEL`). Start it, or "
                f"correct {self._place}.url."
            ) from None

    def user_error(self, told: str) -> UserError:
        return UserError(f"{self._who} {told}.")

    def plain(self, text: str) -> str:
        """A server's text on one line, shortened, without the key."""
        text = " ".join(text.split())
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]} …"

    def give_up(self) -> None:
        """Stop retrying."""
        self._closing.set()

    def close(self) -> None:
        self.give_up()
        self._http.close()

    def _content(self, answer: httpx2.Response, what: str) -> Any:
        status = answer.status_code
        if status == _WRONG_KEY:
            given = f"the key in {self._server.api_key_env}" if self._key else "a request without a key"
            raise self.user_error(
                f"refuses {given} (HTTP {status}): expected one that it takes. Name the environment variable that holds it as "
                f"{self._place}.api_key_env"
            )
        if status == _TOO_MANY or status >= 500:
            told = f"HTTP {status}: {self._said(answer)}"
            raise LostError(told, gone=status != _TOO_MANY, wait=_seconds(answer.headers.get("retry-after")))
        if status >= 400:
            raise RefusedError(f"HTTP {status}: {self._said(answer)}")
        try:
            if status != 200:
                raise ValueError
            return answer.json()
        except ValueError:
            kind = answer.headers.get("content-type", "no content type")
            raise self.user_error(
                f"answers {what} with HTTP {status} and {self.plain(kind)}, not with JSON: expected a running vLLM (`vllm serve "
                f"MODEL`). Correct {self._place}.url"
            ) from None

    def _said(self, answer: httpx2.Response) -> str:
        """The message in an error's body; the start of the body if it is not vLLM's JSON."""
        try:
            body = answer.json()
            told = body.get("error", body)
            return self.plain(str(told.get("message") or told.get("detail") or told))
        except (ValueError, AttributeError):
            return self.plain(answer.text)


def _key(place: str, server: Server) -> str:
    """The API key; empty if none is configured. Raises UserError if its variable is not set or holds no key."""
    if server.api_key_env is None:
        return ""
    key = os.environ.get(server.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(
            f"{place}.api_key_env names {server.api_key_env}, an environment variable that "
            f"{'holds no key that can be sent' if key else 'is not set'}: expected the server's API key in it. Set it."
        )
    return key


def _seconds(text: str | None) -> float:
    """Seconds of a Retry-After header; 0 without one, or for a date."""
    return float(text) if text and text.isdecimal() else 0.0
