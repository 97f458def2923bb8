"""`docs/recipes.md`, made of the settings themselves: every key, what it takes, its default, and what it is for.

python -m mrpo_pipeline.recipe.docs_page docs/recipes.md
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mrpo_pipeline.recipe.settings import TRAINING_DEFAULTS, Recipe
from mrpo_pipeline.recipe.training_bounds import UNREAD

HEAD = """# The recipe, key by key

<!-- Made by `python -m mrpo_pipeline.recipe.docs_page docs/recipes.md`; write into the settings under mrpo_pipeline instead. -->

One YAML file describes a run, and every command reads the parts it needs. `mrpo recipes` lists the recipes that ship,
`mrpo recipes copy small` gives you one to edit. Options of the command line win over the file: the common keys have options of their
own (`--beta`, `--learning-rate`; see `mrpo COMMAND --help`), and `--set method.trust_region.kind=off` sets any key. A key that is
unknown or ill-typed is an error that names the nearest valid one: no text is taken for a number. A setting that changes nothing
beside the others (ε with the trust region off) is reported, and refused where the command line sets it. The resolved recipe is
written beside every result, nulls included, and gives the same run. A shipped recipe's name is that recipe, whatever else is called
so in the current folder; `./NAME` is the file.
"""

_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything", type(None): "null"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def recipe_reference() -> str:
    """The page, as Markdown."""
    parts = [HEAD, "## Top level\n", _table(Recipe, "")]
    for name, field in Recipe.model_fields.items():
        model = _model_of(field.annotation)
        if model is not None:
            prefix = f"{name}.NAME." if get_origin(field.annotation) is dict else f"{name}."
            parts += [f"\n## `{name}`\n", _about(model), _table(model, prefix)]
        elif name == "training":
            parts += ["\n## `training`\n", _training()]
    return "\n".join(part for part in parts if part) + "\n"


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key, dotted, and its field."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        inner = _model_of(field.annotation)
        if inner is not None:
            named = get_origin(field.annotation) is dict
            yield from keys(inner, f"{prefix}{name}.NAME." if named else f"{prefix}{name}.")


def _table(model: type[BaseModel], prefix: str) -> str:
    lines = ["| key | takes | default | |", "|---|---|---|---|"]
    rows = [(name, field) for name, field in keys(model, prefix) if prefix or "." not in name]
    for name, field in rows:
        lines.append(f"| `{name}` | {_takes(field)} | {_default(field)} | {_cell(field.description or '')} |")
    return "\n".join(lines)


def _about(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").replace("``", "`") + "\n"


def _training() -> str:
    """What is ours under ``training``; the rest is transformers'."""
    from mrpo_pipeline.recipe.training import REFUSED, FastPaths

    defaults = ", ".join(f"`{key}: {_plain(value)}`" for key, value in TRAINING_DEFAULTS.items())
    lines = [
        "Every key of [`transformers.TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments).",
        f"Where nothing is said, the authors' settings hold in place of transformers' own: {defaults}.",
        "",
        "What makes a step cheap; none of it changes what is computed, and each can be switched off:",
        "",
        "| key | default | |",
        "|---|---|---|",
        *(
            f"| `training.{name}` | {_default(field)} | {_cell(field.description or '')} |"
            for name, field in FastPaths.model_fields.items()
        ),
    ]
    lines += ["", "These are refused, for what they do does not fit this trainer:", ""]
    lines += [f"- `{key}`: {_cell(reason)}" for key, reason in REFUSED.items()]
    lines += ["", "These change nothing, which is reported where one is given:", ""]
    lines += [f"- `{key}`: {reason}." for key, reason in UNREAD.items()]
    return "\n".join(lines)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings that a key holds, whether alone, by name, or null."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        arguments = arguments[1:]
    elif get_origin(annotation) not in (Union, types.UnionType):
        return None
    return next((found for each in arguments if (found := _model_of(each))), None)


def _takes(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(constraint, name):g}"
        for constraint in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(constraint, name, None) is not None
    ]
    return ", ".join([_kind(field.annotation), *bounds])


def _kind(annotation: Any) -> str:
    """A type in words."""
    if _model_of(annotation) is not None:
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


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if isinstance(value, BaseModel) else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_plain(each) for each in value)}]"
    return yaml.safe_dump(value).split("\n")[0]


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def main() -> None:
    Path(sys.argv[1]).write_text(recipe_reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
