"""Hypothesis strategies for recipes: every key of every part, within its type and bounds, including null."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

import annotated_types
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mrpo_pipeline.models.server import Server
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.recipe.settings import Method, Scoring

# Text that YAML could read as another type, and other text.
TRAPS = ["null", "~", "1e5", "77e2", "1_000", "0512", "1:30", "2024-01-01", "no", "off", "yes", "True", "<<", "=", ".inf", "#a",
         "- a", "a: b", "&a", "*a", "!a", "'", '"', "é", "\U0001f600", "\x85", "\ufeff", "a\nb", " a ", "[", "{", "%", "@"]  # fmt: skip
TEXT = st.sampled_from(TRAPS) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)
NAMES = st.sampled_from(["base", "null", "1e5", "no", "hermes-2"])
PLAIN = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXT

# Constraints of validators beyond the type.
OWN: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (Method, "aggregate"): st.sampled_from(["harmonic", "single:base"]),
    (Method, "loss"): st.sampled_from(["sigmoid", "ipo"]),
    (Recipe, "training"): st.dictionaries(st.sampled_from(["optim_args", "run_name", "project"]), TEXT)
    | st.fixed_dictionaries({"max_grad_norm": st.just(float("inf")), "data_seed": st.none()}),
    (Server, "url"): st.sampled_from(["http://host:8000", "https://[::1]:1/v1", "http://1.5:80/a/"]),
    (Server, "api_key_env"): st.none() | st.sampled_from(["KEY", "_k1"]),
    (Recipe, "limits"): st.none() | st.integers(2, 2**40),
}


def recipes() -> st.SearchStrategy[dict[str, Any]]:
    """Recipe documents as plain data."""
    return documents(Recipe).map(_agreeing)


def _agreeing(document: dict[str, Any]) -> dict[str, Any]:
    """Remove one of two keys that exclude each other."""
    if "limits" in document:
        longest = document["limits"]
        document["limits"] = {"max_length": longest} if longest is None or longest % 2 else {"max_prompt_length": None}
    if document.get("pairs", {}).get("eval") is not None:
        document["pairs"].pop("eval_fraction", None)
    if "compare" in document:
        document["compare"].pop("methods", None)
    for reference in (document.get("references") or {}).values():
        if reference.get("server") is not None:
            for key in ("adapter", "dtype", "quantization", "trust_remote_code", "scoring"):
                reference.pop(key, None)
    return document


def documents(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    required, optional = {}, {}
    for name, field in model.model_fields.items():
        (required if field.is_required() else optional)[name] = (
            OWN[model, name] if (model, name) in OWN else _value(model, name, field)
        )
    drawn = st.fixed_dictionaries(required, optional=optional)
    if model is Scoring:  # other keys are options of the engine
        extra = st.dictionaries(st.sampled_from(["gpu_memory_utilization", "kv_cache_dtype"]), PLAIN, max_size=2)
        return st.tuples(drawn, extra).map(lambda both: {**both[0], **both[1]})
    return drawn


def _value(model: type[BaseModel], name: str, field: FieldInfo) -> st.SearchStrategy[Any]:
    if name == "tasks_batch_size":
        return st.integers(1, 9) | st.just("auto:4")
    if name == "template_kwargs":  # names valid in a template, values valid in JSON
        finite = PLAIN.filter(lambda value: value not in (float("inf"), float("-inf")))
        return st.dictionaries(st.sampled_from(["enable_thinking", "documents"]), finite | st.lists(finite, max_size=2))
    if name == "scoring" and model is not Recipe:
        return st.just({}) | st.just({"kv_cache_dtype": None, "unit": 7})
    return _of_type(field.annotation, field.metadata)


def _of_type(annotation: Any, metadata: typing.Sequence[Any] = ()) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [one for part in arguments[1:] for one in getattr(part, "metadata", [part])]
        return _of_type(arguments[0], [*metadata, *inner])
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_of_type(one, metadata) for one in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        unique = arguments[0] is not str
        return st.lists(_of_type(arguments[0]), min_size=1, max_size=3, unique=unique)
    if origin is dict:
        return st.dictionaries(
            _of_type(arguments[0]) if arguments[0] is not str else NAMES, _of_type(arguments[1]), max_size=2
        )
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return documents(annotation)
    if annotation is type(None):
        return st.none()
    bounds: dict[str, Any] = {}
    for one in metadata:
        if isinstance(one, annotated_types.Ge | annotated_types.Gt):
            bounds["min"] = (
                one.ge if isinstance(one, annotated_types.Ge) else one.gt + (1 if annotation is int else 1e-6)
            )
        if isinstance(one, annotated_types.Le | annotated_types.Lt):
            bounds["max"] = (
                one.le if isinstance(one, annotated_types.Le) else one.lt - (1 if annotation is int else 1e-6)
            )
    if annotation is int:
        return st.integers(bounds.get("min", 0), bounds.get("max", 2**40))
    if annotation is float:
        return st.floats(bounds.get("min", 0), bounds.get("max", 1e9), allow_nan=False, allow_infinity=False)
    if annotation is bool:
        return st.booleans()
    return TEXT if annotation is str else PLAIN
