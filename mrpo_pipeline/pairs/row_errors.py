"""Errors about one row, and descriptions of the values found in it."""

from decimal import Decimal
from typing import Any


class BadRowError(Exception):
    """One row cannot be used.

    `reason` is a short stable key that skipped rows are counted by ("empty completion"); `detail` describes this row.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class NoPreferenceError(BadRowError):
    """A valid row without a preference (a tie, no label), as its data set documents. Counted by reason, never an error."""


def describe(value: Any) -> str:
    """JSON type and content of a value, for messages: `a number (5)`, `null`, `a list`.

    Raises BadRowError: the value is itself a BadRowError, because the file's value is unreadable.
    """
    if isinstance(value, BadRowError):
        raise value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    if isinstance(value, int | float | Decimal):
        return f"a number ({str(value)[:30]})"
    if isinstance(value, str):
        return f"a string ({quoted(value)})"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return f"an object (keys {', '.join(map(quoted, list(value)[:5])) or 'none'})"
    if isinstance(value, bytes):
        return "binary data"
    return f"a {type(value).__name__}"


def quoted(value: Any) -> str:
    """The first 40 characters of a text, quoted, on one line; the description of any other value."""
    if not isinstance(value, str):
        return describe(value)
    return repr(value if len(value) <= 40 else value[:40] + "…")


def check_text(text: str, name: str) -> str:
    """Return the text. Raises BadRowError for a NUL character, which tokenizers and C strings treat differently."""
    if "\0" in text:
        raise BadRowError("NUL character", f"`{name}` holds U+0000 at character {text.index(chr(0))}")
    return text


def check_string(value: Any, name: str, expected: str = "a string") -> str:
    """Return the text. Raises BadRowError: it is not a string, or holds NUL."""
    if not isinstance(value, str):
        raise BadRowError("wrong type", f"`{name}` is {describe(value)}; expected {expected}")
    return check_text(value, name)
