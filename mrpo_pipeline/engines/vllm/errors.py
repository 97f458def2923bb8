"""Reduce vLLM's errors to the one sentence that a user can act on."""

from __future__ import annotations

import re

_ERROR = re.compile(r"\b([A-Z]\w*(?:Error|Exception)): (.+)")
# Some messages list every parameter of the model.
_LONGEST = 600
# One process's report of another's failure: the cause is earlier in the log.
_ECHOES = ("Engine core initialization failed", "Engine process failed to start", "WorkerProc initialization failed")


def cause(message: str, log: str) -> str:
    """One paragraph: the message, or if that only refers to the log, the last error in the log that does not."""
    if any(echo in message for echo in _ECHOES):
        for line in reversed(log.splitlines()):
            found = _ERROR.search(line)
            if found and not any(echo in line for echo in _ECHOES) and found[1] not in ("EOFError", "BrokenPipeError"):
                message = f"{found[1]}: {found[2]}"
                break
    return plain(message)


def plain(message: str) -> str:
    """A message on one line, without pydantic's details for programmers."""
    lines = [re.sub(r"\s*\[type=.*$", "", line).strip() for line in message.splitlines()]
    kept = [
        re.sub(r"^(Value|Assertion) error, ", "", line)
        for line in lines
        if line
        and not line.startswith("For further information")
        and not re.match(r".*\d+ validation errors? for", line)
    ]
    text = " ".join(kept) or message
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
