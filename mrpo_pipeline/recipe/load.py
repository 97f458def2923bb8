"""A recipe's YAML file, read safely, with the command line's overrides laid over it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.one_line import one_line
from mrpo_pipeline.recipe.check import parse_recipe, put, shorter
from mrpo_pipeline.recipe.settings import Recipe

MAX_RECIPE_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """The safe loader, reading ``1e-5`` as a number (YAML 1.1 wants ``1.0e-5``) and refusing a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


# Tags that a recipe may write out; anything else, an object of Python above all, is no setting.
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")} | {"!"}
# Lists and maps within each other: the deepest key of a recipe stands at a third of this.
MAX_DEPTH = 30


def _load_yaml(text: str) -> Any:
    """The document, from plain settings alone.

    Raises:
        ValueError: what is wrong, in one line: YAML that isn't, an alias, a tag, a depth that no recipe has.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            # Anchors can make a small file into a huge document; a recipe has no use for them.
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(
                    f"it uses the YAML alias *{event.anchor}: expected plain settings; write the value out"
                )
            tag = getattr(event, "tag", None)
            if tag is not None and tag not in _PLAIN_TAGS:
                raise ValueError(f"it uses the YAML tag {tag}: expected plain settings; write the value without a tag")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise ValueError(f"lists and maps stand in each other more than {MAX_DEPTH} deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        return yaml.load(text, Loader=_Loader)
    except Exception as error:  # the loader's constructors raise whatever int, date and the like make of a text
        raise ValueError(one_line(error, 500)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    shown = shorter(str(path), 300)
    try:
        there = path.is_file()
        size = path.stat().st_size if there else 0
        if there and size <= MAX_RECIPE_BYTES:
            with path.open("rb") as file:  # one more than is allowed: not every file says how long it is
                data = file.read(MAX_RECIPE_BYTES + 1)
            size = max(size, len(data))
    except OSError as error:
        raise UserError(
            f"The recipe {shown} can't be read ({error.strerror or error}): expected a YAML file. Check the path."
        ) from None
    if not there:
        raise UserError(
            f"The recipe {shown} is not there: expected a YAML file. Check the path, or list those that ship with "
            "`mrpo recipes` and copy one with `mrpo recipes copy NAME`."
        )
    if size > MAX_RECIPE_BYTES:
        raise UserError(
            f"The recipe {shown} has {size:,} bytes: expected a YAML file of settings, of at most "
            f"{MAX_RECIPE_BYTES:,} bytes. Is this a data file?"
        )
    try:
        document = _load_yaml(data.decode("utf-8"))
    except ValueError as error:
        raise UserError(f"The recipe {shown} can't be read as YAML ({error}). Mend the file there.") from None
    if document is None:
        raise UserError(
            f"The recipe {shown} is empty: expected keys such as `pairs:` and `policy:`. Write them, or copy a recipe that "
            "ships (`mrpo recipes copy NAME`)."
        )
    if not isinstance(document, dict):
        raise UserError(
            f"The recipe {shown} holds a {type(document).__name__} at its top: expected keys such as `pairs:` and `policy:`. "
            "Write settings there, or name another file."
        )
    return document


def parse_value(text: str) -> Any:
    """A value as the recipe would read it (``--set method.beta=0.2``); what is no YAML of plain settings is the text itself."""
    try:
        return _load_yaml(text)
    except ValueError:
        return text


def load_recipe(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and lay the overrides (dotted key → value) over it.

    Raises:
        UserError: for a file that can't be read, or a key that is unknown or ill-typed (named, with the nearest valid).
    """
    document = _read_yaml(Path(path)) if path is not None else {}
    for dotted, value in (overrides or {}).items():
        put(document, dotted, value)
    where = f"the recipe {path}" if path is not None else "the options"
    return parse_recipe(document, where)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(__file__).parent.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
