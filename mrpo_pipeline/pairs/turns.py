"""Cells of layouts that need more than their value: turns, lists of objects, lists and numbers written as text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mrpo_pipeline.pairs.bad_row import BadRowError, found
from mrpo_pipeline.pairs.paths import decoded


def joined_turns(values: Sequence[Any]) -> list[Any]:
    """Messages in a row; texts behind them are one user message."""
    turns: list[Any] = []
    texts: list[str] = []
    for value in values:
        if isinstance(value, list) and not texts:
            turns += value
        elif isinstance(value, str):
            texts.append(value)
        else:
            raise BadRowError("mixed forms", "a part of the prompt that holds messages follows one that is a string")
    return [*turns, *([{"role": "user", "content": "\n\n".join(texts)}] if texts else [])]


def texts_of(value: Any, name: str) -> list[str]:
    value = as_list(value)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRowError("wrong type", f"`{name}` is {found(value)}; expected a list of texts, one for each turn")
    return value


def dialogue(asked: Sequence[str], answered: Sequence[str], name: str) -> list[dict[str, str]]:
    if len(asked) != len(answered):
        raise BadRowError("lengths differ", f"`{name}` holds {len(answered)} turns for {len(asked)} of `prompt`")
    return [
        {"role": role, "content": text}
        for turn in zip(asked, answered, strict=True)
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def as_list(value: Any) -> Any:
    return decoded(value) if isinstance(value, str) else value


def objects_in(values: Sequence[Any], name: str) -> list[Mapping[str, Any]]:
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise BadRowError("wrong type", f"`{name}[{index}]` is {found(value)}; expected an object")
    return list(values)


def as_number(value: Any) -> Any:
    """A number written as text is that number; anything else is left for `ranked` to refuse."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def marked_turns(text: str, mark: str) -> str | list[dict[str, str]]:
    """The messages of a text with a mark before every turn but the first; a text without one is no conversation.

    `mark`: a regular expression with the role as its group.
    """
    first, *rest = re.split(mark, text)
    if not rest:
        return text
    turns = [{"role": "user", "content": first}]
    return turns + [
        {"role": role.lower(), "content": content} for role, content in zip(rest[::2], rest[1::2], strict=True)
    ]
