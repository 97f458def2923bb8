"""Cell values of layouts, converted: turns, lists of objects, lists and numbers written as text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mrpo_pipeline.pairs.field_paths import decoded
from mrpo_pipeline.pairs.row_errors import BadRowError, describe


def join_messages(values: Sequence[Any]) -> list[Any]:
    """Join message lists; texts after them become one user message."""
    turns: list[Any] = []
    texts: list[str] = []
    for value in values:
        if isinstance(value, list) and not texts:
            turns += value
        elif isinstance(value, str):
            texts.append(value)
        else:
            raise BadRowError("mixed forms", "a prompt column with messages follows one with a string")
    return [*turns, *([{"role": "user", "content": "\n\n".join(texts)}] if texts else [])]


def list_of_texts(value: Any, name: str) -> list[str]:
    value = decode_list(value)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRowError("wrong type", f"`{name}` is {describe(value)}; expected a list of texts, one per turn")
    return value


def alternating_turns(turns: Iterable[Sequence[str]]) -> list[dict[str, str]]:
    """Messages of (user text, assistant text) pairs."""
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def decode_list(value: Any) -> Any:
    return decoded(value) if isinstance(value, str) else value


def require_objects(values: Sequence[Any], name: str) -> list[Mapping[str, Any]]:
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise BadRowError("wrong type", f"`{name}[{index}]` is {describe(value)}; expected an object")
    return list(values)


def parse_number(value: Any) -> Any:
    """Parse a number written as text; `ranked` rejects other values."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def split_marked_turns(text: str, mark: str) -> str | list[dict[str, str]]:
    """Messages of a text with a marker before every turn except the first. A text without markers is returned unchanged.

    `mark`: regular expression with the role as its only group.
    """
    first, *rest = re.split(mark, text)
    if not rest:
        return text
    turns = zip(["user", *map(str.lower, rest[::2])], [first, *rest[1::2]], strict=True)
    return [{"role": role, "content": content} for role, content in turns]
