"""Locate a text in the output of a template, unchanged or with white space trimmed."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """Output of a template around the content of a completion: `prefix + content + suffix`."""

    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Located:
    """A completion located in the full rendering, `prefix + content + suffix`.

    `content` is the completion without trimmed white space, `start` its index in the completion.
    """

    prefix: str
    content: str
    suffix: str
    start: int


def find_content(full: str, completion: str, frame: Frame) -> Located | None:
    """Locate a completion; None if the template changes more than white space at its ends."""
    before, after = frame.prefix, frame.suffix
    if full.startswith(before) and full.endswith(after) and len(full) >= len(before) + len(after):
        content = full[len(before) : len(full) - len(after)]
        start = content_start(content, completion)
        if start is not None:
            return Located(before, content, after, start)
    if full.endswith(after):
        head = full[: len(full) - len(after)]
        for trimmed in trimmed_variants(completion):
            start = content_start(trimmed, completion)
            if head.endswith(trimmed) and start is not None:
                return Located(head[: len(head) - len(trimmed)], trimmed, after, start)
    return None


def content_start(content: str, completion: str) -> int | None:
    """Index of `content` in the completion, if they differ by white space at the ends only."""
    core = completion.strip()
    if not core:
        return 0 if completion.startswith(content) else None
    # Align the first characters that are not white space.
    start = (len(completion) - len(completion.lstrip())) - (len(content) - len(content.lstrip()))
    if start < 0 or core not in content or completion[start : start + len(content)] != content:
        return None
    return start


def trimmed_variants(text: str) -> list[str]:
    """The text with newlines or all white space removed from either end, longest first."""
    left = [text, text.lstrip("\n"), text.lstrip()]
    return sorted({way for one in left for way in (one, one.rstrip("\n"), one.rstrip())}, key=len, reverse=True)
