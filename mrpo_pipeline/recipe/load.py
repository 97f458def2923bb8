"""A recipe's YAML file, read safely, with the command line's overrides laid over it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe.check import parse_recipe, put
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


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"The recipe {path} is not there: expected a YAML file. Check the path, or list those that ship with "
            "`mrpo recipes` and copy one with `mrpo recipes copy NAME`."
        )
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise UserError(
            f"The recipe {path} has {path.stat().st_size:,} bytes: expected a YAML file of settings, of at most "
            f"{MAX_RECIPE_BYTES:,} bytes. Is this a data file?"
        )
    try:
        text = path.read_text(encoding="utf-8")
        # Anchors can make a small file into a huge document; a recipe has no use for them.
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(
                    f"The recipe {path} uses the YAML alias *{event.anchor}: expected "
                    "plain settings. Write the value out."
                )
        document = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The recipe {path} can't be read as YAML ({reason}). Mend the file there.") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(
            f"The recipe {path} holds a {type(document).__name__} at its top: expected keys such as `pairs:` and `policy:`."
        )
    return document


def parse_value(text: str) -> Any:
    """A value as the recipe would read it (``--set method.beta=0.2``)."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
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
