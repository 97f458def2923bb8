"""YAML of plain settings: read safely, and written so that it reads back as the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from mrpo_pipeline.terminal import one_line


class _Loader(yaml.SafeLoader):
    """The safe loader, except that ``1e-5`` is a number (YAML 1.1 requires ``1.0e-5``) and duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """The safe dumper, except that text which ``_Loader`` would read as a number is quoted, and aliases are not used."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Quoted, because the dumper's other styles lose some line breaks (U+0085, U+2028).
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)

# Numbers of YAML 1.2. YAML 1.1 reads 2024-01-01 as a date, 1:30 as 90 and 0512 as 330: here they are text, which numeric keys
# refuse.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_NUMBERS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


# Tags that a recipe may use; all others, such as Python objects, are refused.
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")} | {"!"}
# Nesting of lists and maps; the deepest key of a recipe is at a third of this.
MAX_DEPTH = 30


def read_yaml(text: str) -> Any:
    """Parse a document of plain settings.

    Raises:
        ValueError: for invalid YAML, an alias, a tag, or excessive nesting; a message of one line.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            # Aliases can expand a small file into a huge document; a recipe does not need them.
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
                    raise ValueError(f"lists and maps are nested more than {MAX_DEPTH} deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        return yaml.load(text, Loader=_Loader)
    except Exception as error:  # the loader's constructors raise errors of int, date and others
        raise ValueError(one_line(error, 500)) from None


def write_yaml(document: Mapping[str, Any]) -> str:
    """YAML that ``read_yaml`` reads as the same document."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
