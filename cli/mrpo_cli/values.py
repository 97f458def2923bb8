"""What is typed behind an option, as the recipe takes it. Whether it is right is for the recipe to say."""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
from typing import Any, get_args, get_origin

# Lists that a comma separates; the others keep it, for it may belong to the name of a file.
_LISTS = {"method.weights", "policy.lora.target_modules", "compare.seeds", "pairs.train", "pairs.eval"}


def simple_types(annotation: Any) -> set[Any]:
    """Which of text, numbers, true or false, and lists an annotation takes."""
    if annotation in (str, int, float, bool):
        return {annotation}
    origin = get_origin(annotation)
    if origin is list:
        return {list}
    if str(origin) == "typing.Literal":
        return {type(value) for value in get_args(annotation)}
    inner = get_args(annotation)
    if inner and hasattr(annotation, "__metadata__"):
        inner = inner[:1]
    return {kind for each in inner for kind in simple_types(each)}


def value_of(key: str, text: Any) -> Any:
    """The value that an option sets: a number where the key takes one, a list where it takes one and a comma is given."""
    from mrpo_pipeline.recipe.fields import key_help

    if not isinstance(text, str):
        return text
    kinds = simple_types(key_help(key).type)
    if key in _LISTS and ("," in text or str not in kinds):
        parts = [part.strip() for part in text.split(",")]
        if not key.startswith("pairs."):
            return [_number(part, {int, float}) for part in parts]
        return parts if all(map(_is_source, parts)) and not _is_source(text) else text
    return _number(text, kinds)


def _number(text: str, kinds: set[Any]) -> Any:
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(text)
    return text


def _is_source(name: str) -> bool:
    """Whether pairs could come from a source of this name. A comma may belong to the name of a file or to a URL."""
    if "://" in name or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return "," not in name
    return os.path.exists(os.path.expanduser(name)) or bool(glob.glob(os.path.expanduser(name), recursive=True))
