"""What others say, a library or a file, as it stands in a message of ours: on one line, and no longer than can be read."""

from __future__ import annotations


def one_line(said: object, most: int = 300) -> str:
    """The words of a text or an error on one line, ``most`` characters of them; … where there are more."""
    text = " ".join(str(said).split())
    return text if len(text) <= most else text[:most] + "…"
