"""Pydantic's expectations in words, because its own messages use Python's types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_WORDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "keys under it",
    "model_type": "keys under it",
    "invalid_key": "keys that are text (in quotes, where they are numbers)",
}
_BOUNDS = {
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "too_short": "a list of {min_length} or more",
    "string_too_short": "text of {min_length} or more characters",
    "string_too_long": "text of {max_length} or fewer characters",
}


def in_words(problems: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic expected of one value; each problem is of one member of a union."""
    of_its_key = [problem for problem in problems if problem["loc"][-1:] == ("[key]",)]
    return ", or ".join(dict.fromkeys(map(_expected, of_its_key or problems)))


def place_of(location: Sequence[Any], document: Any) -> list[str]:
    """The keys of ``document`` in pydantic's location, which also holds members of unions (``list[int]``,
    ``literal['auto']``)."""
    keys = []
    for part in location:
        item = isinstance(document, list) and isinstance(part, int) and part < len(document)
        if item or (isinstance(document, Mapping) and part in document):
            document = document[part]
            keys.append(str(part))
    return keys


def _expected(problem: Mapping[str, Any]) -> str:
    kind = problem["type"]
    if kind == "string_type" and problem["loc"][-1:] == ("[key]",):
        kind = "invalid_key"
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**{name: _plain(limit) for name, limit in problem["ctx"].items()})
    message: str = problem["msg"]
    return _WORDS.get(kind) or message.removeprefix("Value error, ").removeprefix("Input should be ")


def _plain(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit
