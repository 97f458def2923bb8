"""Keys of ``transformers.TrainingArguments``: names, types, defaults and help, parsed from its source.

This avoids importing transformers, which takes a second or more, to report a misspelt key. If the installed version can't be
parsed (a package without sources), transformers is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

_PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list": list, "Any": Any}
_SOURCES = ("training_args.py", "trainer_utils.py")


@dataclass(frozen=True)
class TrainingKey:
    """A key of ``training``."""

    type: Any
    """The key's type as plain data: enumerations are text, Python classes are left out."""
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    """The values of the key's enumeration, if it has one."""


@functools.cache
def training_keys() -> dict[str, TrainingKey]:
    """The keys of the installed version except ``output_dir``, which is a key of the recipe."""
    try:
        found = dict(_read())
    except (OSError, SyntaxError, LookupError, ImportError, ValueError):
        found = dict(_imported())
    found.pop("output_dir", None)
    return found


def _read() -> Iterator[tuple[str, TrainingKey]]:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ImportError("transformers")
    folder = Path(spec.origin).parent
    classes: dict[str, ast.ClassDef] = {}
    for name in _SOURCES:
        tree = ast.parse((folder / name).read_text(encoding="utf-8"))
        classes |= {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    words = {name: _words(node) for name, node in classes.items()}
    for node in classes["TrainingArguments"].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            arguments = _field(node.value)
            if arguments.get("init", True):
                kind = _type(node.annotation)
                help_text = arguments.get("help") or ""
                yield node.target.id, TrainingKey(kind, arguments.get("default"), help_text, _choices(node, words))


def _imported() -> Iterator[tuple[str, TrainingKey]]:
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    for one in dataclasses.fields(TrainingArguments):
        if one.init:
            default = None if one.default is dataclasses.MISSING else one.default
            parts = typing.get_args(hints[one.name]) or (hints[one.name],)
            choices = next((tuple(each.value for each in kind) for kind in parts if _is_words(kind)), ())
            plain = Union[tuple(kind for kind in parts if _is_plain(kind))] if len(parts) > 1 else hints[one.name]  # noqa: UP007
            yield one.name, TrainingKey(plain, default, one.metadata.get("help") or "", choices)


def _is_words(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "__members__")


def _is_plain(kind: Any) -> bool:
    return not isinstance(kind, type) or kind in (*_PLAIN.values(), type(None))


def _field(value: ast.expr | None) -> dict[str, Any]:
    """The literal arguments of ``field(default=…, metadata={"help": …})``."""
    if not isinstance(value, ast.Call):
        return {"default": _literal(value)}
    found = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
    metadata = found.pop("metadata", None)
    if isinstance(metadata, ast.Dict):
        found |= {str(_literal(key)): text for key, text in zip(metadata.keys, metadata.values, strict=True)}
    return {name: _literal(each) for name, each in found.items()}


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:  # computed when the module is imported
        return None


def _type(node: ast.expr) -> Any:
    """An annotation as a type of plain data; Any if all its members are unknown."""
    members = [_member(each) for each in _union(node)]
    known = [member for member in members if member is not ...]
    return Union[tuple(known)] if known else Any  # noqa: UP007 (made of a list)


def _union(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp):
        yield from _union(node.left)
        yield from _union(node.right)
    else:
        yield node


def _member(node: ast.expr) -> Any:
    """One member of a union; ``...`` for a class of transformers, which plain data can't be."""
    if isinstance(node, ast.Constant):
        return type(None) if node.value is None else ...
    if isinstance(node, ast.Subscript):
        kind = ast.unparse(node.value)
        if kind == "Literal":
            return Literal[ast.literal_eval(node.slice)]
        inner = [_type(each) for each in (node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice])]
        make: dict[str, Callable[[], Any]] = {"list": lambda: list[inner[0]], "dict": lambda: dict[inner[0], inner[1]]}  # type: ignore[valid-type]
        return make[kind]() if kind in make else ...
    return _PLAIN.get(ast.unparse(node), ...)


def _words(node: ast.ClassDef) -> tuple[str, ...]:
    """The values of an enumeration of strings, in its order."""
    values = [_literal(each.value) for each in node.body if isinstance(each, ast.Assign)]
    return tuple(value for value in values if isinstance(value, str))


def _choices(node: ast.AnnAssign, words: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return next((words[name] for each in _union(node.annotation) if words.get(name := ast.unparse(each))), ())
