"""Convert the text of an option to a recipe value. The recipe validates it."""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
from typing import Any, get_args, get_origin

# Keys whose text is split at commas. In other lists a comma may belong to a file name.
_LISTS = {"method.weights", "policy.lora.target_modules", "compare.seeds", "pairs.train", "pairs.eval"}


def cache_place(text: str) -> str:
    """The location of a cache, given itself or by a recipe (.yaml)."""
    if not text.endswith((".yaml", ".yml")):
        return text
    from mrpo_pipeline.recipe import load_recipe

    return load_recipe(text).cache


def simple_types(annotation: Any) -> set[Any]:
    """The plain types in an annotation: str, int, float, bool, list, dict."""
    if annotation in (str, int, float, bool):
        return {annotation}
    origin = get_origin(annotation)
    if origin in (list, dict):
        return {origin}
    if str(origin) == "typing.Literal":
        return {type(value) for value in get_args(annotation)}
    inner = get_args(annotation)
    if inner and hasattr(annotation, "__metadata__"):
        inner = inner[:1]
    return {kind for each in inner for kind in simple_types(each)}


def value_of(key: str, text: Any) -> Any:
    """The value of an option: a number for a numeric key, a list for text with commas, a mapping for text in braces."""
    from mrpo_pipeline.recipe import parse_value
    from mrpo_pipeline.recipe.key_help import key_help

    if not isinstance(text, str):
        return text
    kinds = simple_types(key_help(key).type)
    if dict in kinds and text.startswith("{"):
        return parse_value(text)
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
    """Whether a name can be a source of pairs. File names and URLs may contain commas."""
    if "://" in name or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return "," not in name
    return os.path.exists(os.path.expanduser(name)) or bool(glob.glob(os.path.expanduser(name), recursive=True))
