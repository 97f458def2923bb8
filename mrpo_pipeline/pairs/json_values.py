"""JSON inside a row that is kept as JSON: arguments of tool calls, schemas of tools, arguments of a chat template."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from mrpo_pipeline.files.bounds import MAX_NESTING
from mrpo_pipeline.pairs.bad_row import BadRowError, check_text, found, quoted


class Exact(dict[str, Any]):
    """An object out of a column of JSON in an Arrow file: a null in it is the writer's."""


def parsed(text: str, where: str, reason: str, kind: type[dict[str, Any]] = dict) -> Any:
    """The value of a JSON text, strictly: no key twice in one object, no NaN. Objects are of `kind`.

    Raises BadRowError, by `reason`.
    """
    try:
        return json.loads(
            text, object_pairs_hook=partial(_object, kind), parse_constant=_no_constant, parse_int=whole_number
        )
    except RecursionError:
        raise BadRowError("invalid JSON", f"`{where}` is nested too deep") from None
    except ValueError as error:
        raise BadRowError(reason, f"`{where}` is no JSON ({_why(error)}): {quoted(text)}") from None


def checked(value: Any, where: str, *, filled: bool = False, depth: int = 0) -> Any:
    """A value as JSON can hold it, in every model's tokenizer: texts without NUL and lone surrogates, finite numbers.

    `filled`: the value is out of an Arrow file, whose structs have every key of every row: a key with null is absent. An `Exact`
    object keeps its nulls.
    Raises BadRowError.
    """
    if isinstance(value, str):
        return _checked_text(value, where)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRowError("not a finite number", f"`{where}` holds {value}")
        return value
    if depth > MAX_NESTING:
        raise BadRowError("invalid JSON", f"`{where}` is nested too deep")
    if filled and isinstance(value, list) and value and all(_is_entry(one) for one in value):  # a map of Arrow
        value = dict(value)
    if isinstance(value, Mapping):
        filled = filled and not isinstance(value, Exact)
        return {
            _checked_key(key, where): checked(inner, where, filled=filled, depth=depth + 1)
            for key, inner in value.items()
            if not (filled and inner is None)
        }
    if isinstance(value, list):
        return [checked(inner, where, filled=filled, depth=depth + 1) for inner in value]
    raise BadRowError("wrong type", f"`{where}` holds {found(value)}; expected a value of JSON")


def _is_entry(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


def _checked_key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise BadRowError("wrong type", f"`{where}` has the key {found(key)}; expected a string")
    return _checked_text(key, where)


def _checked_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise BadRowError("lone surrogate", f"`{where}`: \\u{code:04x} is without its other half") from None
    return check_text(text, where)


def _object(kind: type[dict[str, Any]], items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = kind(items)
    if len(value) != len(items):
        twice = next(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        raise ValueError(f"the key {quoted(twice)} occurs twice in one object")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def whole_number(digits: str) -> int | float:
    """The number of so many digits; infinite where Python refuses to read them."""
    try:
        return int(digits)
    except ValueError:
        return math.inf


def _why(error: ValueError) -> str:
    return f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
