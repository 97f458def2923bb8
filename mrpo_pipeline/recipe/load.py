"""Read a recipe's YAML file safely, and apply the command line's overrides."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe.check import parse_recipe, put, shorter
from mrpo_pipeline.recipe.plain_yaml import read_yaml
from mrpo_pipeline.recipe.settings import Recipe

MAX_RECIPE_BYTES = 1 << 20


def _read_yaml(path: Path) -> dict[str, Any]:
    shown = shorter(str(path), 300)
    try:
        there = path.is_file()
        size = path.stat().st_size if there else 0
        if there and size <= MAX_RECIPE_BYTES:
            with path.open("rb") as file:  # one byte more than the limit: a pipe or device reports no size
                data = file.read(MAX_RECIPE_BYTES + 1)
            size = max(size, len(data))
    except OSError as error:
        raise UserError(
            f"The recipe {shown} can't be read ({error.strerror or error}): expected a YAML file. Check the path."
        ) from None
    if not there:
        raise UserError(
            f"The recipe {shown} is not there: expected a YAML file. Check the path, or list the shipped recipes with "
            "`mrpo recipes` and copy one with `mrpo recipes copy NAME`."
        )
    if size > MAX_RECIPE_BYTES:
        raise UserError(
            f"The recipe {shown} has {size:,} bytes: expected a YAML file of settings, of at most "
            f"{MAX_RECIPE_BYTES:,} bytes. Is this a data file?"
        )
    try:
        document = read_yaml(data.decode("utf-8"))
    except ValueError as error:
        raise UserError(f"The recipe {shown} can't be read as YAML ({error}). Correct the file there.") from None
    if document is None:
        raise UserError(
            f"The recipe {shown} is empty: expected keys such as `pairs:` and `policy:`. Write them, or copy a shipped recipe "
            "(`mrpo recipes copy NAME`)."
        )
    if not isinstance(document, dict):
        raise UserError(
            f"The recipe {shown} holds a {type(document).__name__} at the top level: expected keys such as `pairs:` and `policy:`. "
            "Write settings there, or name another file."
        )
    return document


def parse_value(text: str) -> Any:
    """A value as the recipe would read it (``--set method.beta=0.2``); text that is not valid YAML stays text."""
    try:
        return read_yaml(text)
    except ValueError:
        return text


def load_recipe(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Recipe:
    """Read a recipe and apply overrides (dotted key → value).

    Args:
        source: a YAML file, the recipe as plain data, or None for an empty one.
        options: the command-line option of each override that has one, for error messages.

    Raises:
        UserError: for a file that can't be read, an unknown key (with the nearest valid one), or a value of the wrong type.
    """
    if isinstance(source, Mapping):
        document, where = copy.deepcopy(dict(source)), "the recipe"
    else:
        document = _read_yaml(Path(source)) if source is not None else {}
        where = f"the recipe {source}" if source is not None else "the options"
    for dotted, value in (overrides or {}).items():
        put(document, dotted, value)
    return parse_recipe(document, where, options)


def shipped_recipes() -> dict[str, Path]:
    """The recipes of the package, by name."""
    folder = Path(__file__).parent.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
