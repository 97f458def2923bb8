"""JSON values inside a row: arguments of tool calls, tool schemas, arguments of a chat template."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from mrpo_pipeline.files.bounds import MAX_NESTING
from mrpo_pipeline.pairs.row_errors import BadRowError, check_text, describe, quoted


class JsonObject(dict[str, Any]):
    """An object from a JSON column of an Arrow file, where null is a value and not padding."""


def parse_json(text: str, where: str, reason: str, kind: type[dict[str, Any]] = dict) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN. Objects have the type `kind`.

    Raises BadRowError with `reason`.
    """
    try:
        return json.loads(
            text, object_pairs_hook=partial(_object, kind), parse_constant=_no_constant, parse_int=parse_integer
        )
    except RecursionError:
        raise BadRowError("invalid JSON", f"`{where}` is nested too deep") from None
    except ValueError as error:
        why = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else error
        raise BadRowError(reason, f"`{where}` is not valid JSON ({why}): {quoted(text)}") from None


def check_json(value: Any, where: str, *, drop_nulls: bool = False, depth: int = 0) -> Any:
    """Return a value that JSON and every tokenizer can represent: no NUL or lone surrogates in texts, finite numbers.

    `drop_nulls`: the value is from an Arrow file, whose structs have the keys of all rows, so keys with null are dropped. A
    `JsonObject` keeps its nulls.
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
    if drop_nulls and isinstance(value, list) and value and all(isinstance(one, tuple) for one in value):
        value = dict(value)  # a map of Arrow
    if isinstance(value, Mapping):
        drop_nulls = drop_nulls and not isinstance(value, JsonObject)
        return {
            _checked_key(key, where): check_json(inner, where, drop_nulls=drop_nulls, depth=depth + 1)
            for key, inner in value.items()
            if not (drop_nulls and inner is None)
        }
    if isinstance(value, list):
        return [check_json(inner, where, drop_nulls=drop_nulls, depth=depth + 1) for inner in value]
    raise BadRowError("wrong type", f"`{where}` holds {describe(value)}; expected a value of JSON")


def _checked_key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise BadRowError("wrong type", f"`{where}` has the key {describe(key)}; expected a string")
    return _checked_text(key, where)


def _checked_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise BadRowError("lone surrogate", f"`{where}` holds the unpaired surrogate \\u{code:04x}") from None
    return check_text(text, where)


def _object(kind: type[dict[str, Any]], items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = kind(items)
    if len(value) != len(items):
        raise ValueError(f"the key {quoted(duplicates(key for key, _ in items)[0])} occurs twice in one object")
    return value


def duplicates(names: Iterable[str]) -> list[str]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def parse_integer(digits: str) -> int | float:
    """Parse an integer; infinity if it exceeds Python's limit on digits."""
    try:
        return int(digits)
    except ValueError:
        return math.inf
