"""Values inside a row by path: `info.post`, `summaries[0].text`."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


@lru_cache(maxsize=4096)
def _steps(path: str) -> tuple[str | int, ...]:
    return tuple(name or int(index) for name, index in _STEP.findall(path))


def top_column(path: str) -> str:
    """Top-level column of a path."""
    return str(_steps(path)[0]) if _steps(path) else path


def get_path(row: Mapping[str, Any], path: str, *, decode: bool = False) -> Any:
    """Value at a path, or None. A column whose name equals the path takes precedence.

    `decode`: strings on the way are parsed as JSON.
    """
    if path in row:
        return row[path]
    place: Any = row
    for step in _steps(path):
        if decode and isinstance(place, str):
            place = decoded(place)
        if isinstance(step, int):
            place = place[step] if isinstance(place, list) and step < len(place) else None
        else:
            place = place.get(step) if isinstance(place, Mapping) else None
        if place is None:
            return None
    return place


def decoded(text: str) -> Any:
    """List or object that a string holds as JSON; any other string unchanged."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def is_filled(value: Any) -> bool:
    """Whether a value is other than null, blank text, or an empty list or object."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value != [] and value != {}
