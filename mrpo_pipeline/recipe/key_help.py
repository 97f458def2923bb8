"""Help on the keys of the recipe: values, default and description, for `docs/recipes.md` and the command line's help."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mrpo_pipeline.recipe.settings import TRAINING_DEFAULTS, Recipe
from mrpo_pipeline.recipe.training_arguments_source import training_keys

_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything", type(None): "null"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class KeyHelp:
    """The help of one key."""

    about: str
    type: Any
    """The annotation without its constraints."""
    bounds: str
    """For example `> 0`; empty for none."""
    choices: tuple[str, ...]
    default: str
    """As YAML; empty for none."""


def key_help(key: str) -> KeyHelp:
    """The help of a dotted key of the recipe, including those of `training`."""
    first, _, name = key.partition(".")
    if first == "training":
        one = training_keys()[name]
        default = TRAINING_DEFAULTS.get(name, one.default)
        return KeyHelp(_shortened(one.help), one.type, "", one.choices, "" if default is None else as_yaml(default))
    field = _field(key)
    bounds, choices = ", ".join(_bounds(field)), tuple(_choices(field.annotation))
    default = default_of(field).strip("`")
    about = _shortened(field.description or "")
    return KeyHelp(
        about, field.annotation, bounds, choices, "" if default in ("null", "[]", "must be given") else default
    )


def _field(key: str) -> FieldInfo:
    model: type[BaseModel] = Recipe
    *parents, last = key.split(".")
    for parent in parents:
        inner = model_of(model.model_fields[parent].annotation)
        assert inner is not None, key
        model = inner
    return model.model_fields[last]


def _shortened(text: str) -> str:
    """A text of up to 160 characters; of a longer one the first sentences, up to 40 characters or more. Without backticks."""
    text = " ".join(text.split())
    kept = ""
    for sentence in re.split(r"(?<=[.])\s+(?=[A-Z`])", text) if len(text) > 160 else [text]:
        kept = f"{kept} {sentence}".strip()
        if len(kept) >= 40:
            break
    return kept.replace("`", "")


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key and its field."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        inner = model_of(field.annotation)
        if inner is not None:
            named = get_origin(field.annotation) is dict
            yield from keys(inner, f"{prefix}{name}.NAME." if named else f"{prefix}{name}.")


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class of a key whose value is settings, settings by name, or null; None for other keys."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        arguments = arguments[1:]
    elif get_origin(annotation) not in (Union, types.UnionType):
        return None
    return next((found for each in arguments if (found := model_of(each))), None)


def takes(field: FieldInfo) -> str:
    """The type and bounds of a key in words."""
    return ", ".join([_kind(field.annotation), *_bounds(field)])


def _bounds(field: FieldInfo) -> list[str]:
    return [
        f"{sign} {getattr(constraint, name):g}"
        for constraint in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(constraint, name, None) is not None
    ]


def _choices(annotation: Any) -> Iterator[str]:
    """The literal values of a key."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from (value for value in arguments if isinstance(value, str))
    elif origin is typing.Annotated:
        yield from _choices(arguments[0])
    elif origin in (Union, types.UnionType):
        for each in arguments:
            yield from _choices(each)


def _kind(annotation: Any) -> str:
    """A type in words."""
    if model_of(annotation) is not None:
        return "keys by name" if get_origin(annotation) is dict else "keys"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(each) for each in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return "keys by name" if get_origin(arguments[1]) is dict else "keys"
    return _NAMES.get(annotation, str(annotation))


def default_of(field: FieldInfo) -> str:
    """A key's default as YAML."""
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if isinstance(value, BaseModel) else f"`{as_yaml(value)}`"


def as_yaml(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_yaml(each) for each in value)}]"
    return yaml.safe_dump(value).split("\n")[0]
