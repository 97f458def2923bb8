"""A row that cannot be used, and the words for what was found in it."""

from decimal import Decimal
from typing import Any


class BadRowError(Exception):
    """One row cannot be used.

    `reason` is a short stable key, the one that skipped rows are counted by ("empty completion"); `detail` is a
    sentence about this row.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class NoPreferenceError(BadRowError):
    """A sound row that holds no preference, as its data set has them: a tie, no label. Counted by reason, never refused."""


def found(value: Any) -> str:
    """What a value of the wrong type is, in JSON's words: `a number (5)`, `null`, `a list`.

    Raises BadRowError: the value is one, as its file holds nothing that can be read there.
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


def quoted(text: str) -> str:
    """At most 40 characters of a text, on one line, in quotes."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def check_text(text: str, name: str) -> str:
    """Refuse what no tokenizer, terminal and C string treats alike: the NUL character. Returns the text."""
    if "\0" in text:
        raise BadRowError("NUL character", f"`{name}` holds U+0000 at character {text.index(chr(0))}")
    return text
