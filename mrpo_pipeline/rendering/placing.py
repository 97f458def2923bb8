"""Where a text is in what a template writes: as it stands, or less white space at its ends."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes round a completion's content: `prefix + content + suffix`."""

    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Located:
    """A completion found in the full rendering, `prefix + content + suffix`.

    `content` is the completion less the white space the template trimmed, `start` its first char in the completion.
    """

    prefix: str
    content: str
    suffix: str
    start: int


def find_content(full: str, completion: str, frame: Frame) -> Located | None:
    """A completion in the full rendering; None where it is changed by more than white space at its ends."""
    before, after = frame.prefix, frame.suffix
    if full.startswith(before) and full.endswith(after) and len(full) >= len(before) + len(after):
        content = full[len(before) : len(full) - len(after)]
        start = place(content, completion)
        if start is not None:
            return Located(before, content, after, start)
    if full.endswith(after):
        head = full[: len(full) - len(after)]
        for trimmed in trimmings(completion):
            start = place(trimmed, completion)
            if head.endswith(trimmed) and start is not None:
                return Located(head[: len(head) - len(trimmed)], trimmed, after, start)
    return None


def trimmings(text: str) -> list[str]:
    """The text with white space off its ends in the ways templates do it, the longest forms first."""
    ways: list[Callable[[str], str]] = [
        lambda s: s,
        lambda s: s.rstrip("\n"),
        lambda s: s.lstrip("\n"),
        lambda s: s.strip("\n"),
        str.rstrip,
        str.lstrip,
        str.strip,
    ]
    return [way(text) for way in ways]


def place(content: str, completion: str) -> int | None:
    """Where `content` starts in the completion, if it is the completion less white space at its ends."""
    core = completion.strip()
    if not core:
        return 0 if completion.startswith(content) else None
    # Aligned by the first character that is not white space: both hold the same core, or it is not the completion.
    start = (len(completion) - len(completion.lstrip())) - (len(content) - len(content.lstrip()))
    if start < 0 or core not in content or completion[start : start + len(content)] != content:
        return None
    return start


def trims(text: str) -> list[str]:
    """The text with white space off either end in every way, the longest forms first."""
    left = [text, text.lstrip("\n"), text.lstrip()]
    return sorted({way for one in left for way in (one, one.rstrip("\n"), one.rstrip())}, key=len, reverse=True)
