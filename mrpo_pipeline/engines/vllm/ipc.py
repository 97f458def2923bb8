"""Messages between the engine's process and the caller: a JSON header and raw numbers, no pickle."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray


def send(connection: Connection, header: dict[str, Any], numbers: NDArray[Any] | None = None) -> None:
    """Send one message. `numbers` is one flat array; the header carries its dtype."""
    head = dict(header)
    if numbers is not None:
        head["numbers"] = numbers.dtype.str
    text = json.dumps(head).encode()
    body = b"" if numbers is None else np.ascontiguousarray(numbers).tobytes()
    connection.send_bytes(len(text).to_bytes(4, "little") + text + body)


def receive(connection: Connection) -> tuple[dict[str, Any], NDArray[Any]]:
    """The next message: header and numbers (empty if there are none). Raises EOFError if the other side is closed."""
    message = connection.recv_bytes()
    end = 4 + int.from_bytes(message[:4], "little")
    header: dict[str, Any] = json.loads(message[4:end])
    numbers = np.frombuffer(message, dtype=np.dtype(header.pop("numbers", "<f4")), offset=end)
    return header, numbers


def split(numbers: NDArray[Any], lengths: list[int]) -> list[NDArray[Any]]:
    """One flat array split into consecutive pieces of these lengths."""
    return np.split(numbers, np.cumsum(lengths)[:-1]) if lengths else []
