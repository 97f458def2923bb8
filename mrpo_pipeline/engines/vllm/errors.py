"""What vLLM says when it does not start, brought down to the sentence that a person can act on."""

from __future__ import annotations

import re

_ERROR = re.compile(r"\b([A-Z]\w*(?:Error|Exception)): (.+)")
# Some messages list every parameter of the model.
_LONGEST = 600
# Said of a process by another one: the cause stands in the log above it.
_ECHOES = ("Engine core initialization failed", "Engine process failed to start", "WorkerProc initialization failed")


def cause(message: str, log: str) -> str:
    """One paragraph: the message, or where that only points at the log, the last error there that is not an echo too."""
    if any(echo in message for echo in _ECHOES):
        for line in reversed(log.splitlines()):
            found = _ERROR.search(line)
            if found and not any(echo in line for echo in _ECHOES) and found[1] not in ("EOFError", "BrokenPipeError"):
                message = f"{found[1]}: {found[2]}"
                break
    return plain(message)


def plain(message: str) -> str:
    """A message on one line, without what pydantic adds for programmers."""
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
