"""Validate a recipe given as plain data; errors name the key and the nearest valid one."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pydantic
from pydantic import BaseModel

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe.key_help import model_of
from mrpo_pipeline.recipe.messages import in_words, place_of
from mrpo_pipeline.recipe.settings import Method, Recipe, Reference, Scoring

_MAX_PARTS = 20
# Settings of a reference, and keys of its `scoring`, that do not apply if a server loads and runs the model.
_LOADING_KEYS = ("adapter", "dtype", "quantization", "trust_remote_code")
_RUNNING_KEYS = ("engine", "runtime", "workers", "unit")
# The parts of a URL that may hold a password or key.
_USERINFO, _QUERY = re.compile(r"(://)\S*@"), re.compile(r"(://[^?\s]*\?)\S*(?=')")


def put(document: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key in nested plain data.

    Raises:
        UserError: for a key with too many parts.
    """
    *parents, last = dotted.split(".")
    if len(parents) > _MAX_PARTS:
        raise UserError(
            f"The key `{shorter(dotted)}` has {len(parents) + 1:,} parts: expected a recipe's key, such as method.trust_region.kind. "
            "Correct it."
        )
    place = document
    for parent in parents:
        child = place.get(parent)
        if not isinstance(child, dict):
            child = place[parent] = {}
        place = child
    place[last] = value


def shorter(text: str, most: int = 80) -> str:
    """The text, truncated to ``most`` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def parse_recipe(
    document: Mapping[str, Any], where: str = "the recipe", given: Mapping[str, str] = MappingProxyType({})
) -> Recipe:
    """Validate a recipe given as plain data.

    Args:
        where: the name of the document in errors.
        given: the option of each dotted key that the command line sets, for errors.
    """
    _require_valid_values(document, "", where)
    try:
        recipe = Recipe.model_validate(dict(document))
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, document, where, given=given)) from None
    limits = recipe.limits
    if limits.max_length and limits.max_prompt_length and limits.max_prompt_length >= limits.max_length:
        raise UserError(
            f"In {where}, limits.max_prompt_length is {limits.max_prompt_length} and limits.max_length is "
            f"{limits.max_length}: expected room for a completion. Lower the first or raise the second."
        )
    if recipe.pairs.eval is not None and recipe.pairs.eval_fraction:
        raise UserError(
            f"In {where}, both pairs.eval and pairs.eval_fraction are given: expected one of them. Take one out."
        )
    from mrpo_pipeline.cache.reference_names import check_reference_name

    folders: dict[str, str] = {}
    for name in recipe.references:
        check_reference_name(name)
        other = folders.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"In {where}, `references` holds {other!r} and {name!r}, which are the same folder of the cache on many systems: "
                "expected names that differ in more than capitals. Rename one."
            )
    for name in recipe.references:
        try:
            recipe.scoring_of(name)
        except pydantic.ValidationError as error:
            own = recipe.references[name].scoring
            raise UserError(_explain(error, own, f"references.{name}.scoring", Scoring)) from None
        _refuse_loading_keys(recipe.references[name], f"references.{name}", where)
    for name in recipe.compare.methods:
        method_for(recipe, name)
    _check_training({key: recipe.training[key] for key in document.get("training") or {}}, where, given)
    return recipe


def _refuse_loading_keys(reference: Reference, key: str, where: str) -> None:
    """Refuse settings of loading and running a model for a reference that a server runs."""
    if reference.server is None:
        return
    fields = Reference.model_fields
    given = [name for name in _LOADING_KEYS if getattr(reference, name) != fields[name].default]
    given += [
        f"scoring.{name}" for name in reference.scoring if name not in Scoring.model_fields or name in _RUNNING_KEYS
    ]
    if given:
        raise UserError(
            f"The key `{key}.{given[0]}` in {where} is given beside `{key}.server`: expected none, because the server loads and runs "
            "the model. Take it out; a vLLM server has a name for each adapter, to be given as `server.model`."
        )


def _require_valid_values(value: Any, key: str, where: str) -> None:
    """Refuse text that files, paths and tables can't hold (NUL and lone surrogates, which undecodable shell bytes become), and
    integers of more than 64 bits."""
    if isinstance(value, str):
        bad = next((char for char in value if char == "\0" or "\ud800" <= char <= "\udfff"), None)
        if bad is not None:
            raise UserError(
                f"The key `{shorter(key)}` in {where} holds the character U+{ord(bad):04X}, at {value.index(bad)}: expected text "
                "that can be written as UTF-8, without NUL. Correct the value."
            )
    elif isinstance(value, int) and value.bit_length() > 63:
        raise UserError(
            f"The key `{shorter(key)}` in {where} is a whole number of {value.bit_length():,} bits: expected 63 bits at most. "
            "Correct the value."
        )
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            dotted = f"{key}.{name}" if key else str(name)
            _require_valid_values(str(name), ascii(dotted)[1:-1], where)
            _require_valid_values(inner, dotted, where)
    elif isinstance(value, list):
        for inner in value:
            _require_valid_values(inner, key, where)


def method_for(recipe: Recipe, name: str) -> Method:
    """The method ``name`` of ``compare.methods``: the recipe's method with that entry's overrides."""
    document = recipe.method.model_dump(mode="json")
    for key, value in recipe.compare.methods[name].items():
        # A sum of losses and weights by a column are one setting each: an override replaces them.
        if isinstance(value, dict) and isinstance(document.get(key), dict) and key not in ("loss", "weights"):
            document[key] = {**document[key], **value}
        else:
            put(document, key, value)
    try:
        return Method.model_validate(document)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, document, f"compare.methods.{name}", Method)) from None


def _explain(
    error: pydantic.ValidationError,
    document: Mapping[str, Any],
    where: str,
    root: type[BaseModel] = Recipe,
    given: Mapping[str, str] = MappingProxyType({}),
) -> str:
    problems = error.errors(include_url=False)
    # If a required key is missing too, a misspelt one is the likely cause.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        key = shorter(".".join(location))
        valid = _keys_at(root, location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.0)
        return (
            f"Unknown key `{key}` in {_option(location, given) or where}: the nearest valid one is `{near[0] if near else ''}` "
            f"(valid here: {', '.join(valid)}). Correct it or take it out."
        )
    place = place_of(problem["loc"], document)
    if problem["type"] == "missing":
        return f"The key `{'.'.join([*place, location[-1]])}` is missing in {where}. Add it."
    # A union reports a problem of each member; if one of them is a list, name its invalid item.
    places = [place_of(p["loc"], document) for p in problems]
    place = max((one for one in places if one[: len(place)] == place), key=len)
    alike = [p for p, one in zip(problems, places, strict=True) if one == place]
    # The value may be the API key itself instead of the variable's name: keep it out of logs.
    found = "something else" if place[-1:] == ["api_key_env"] else _shown(alike[0].get("input"))
    return f"{_named(place, where, given)} is {found}: expected {in_words(alike)}. Correct the value."


def _named(place: Sequence[str], where: str, given: Mapping[str, str]) -> str:
    """A key as the user wrote it: the option that sets it, or its place in the recipe."""
    key, option = shorter(".".join(place)), _option(place, given)
    return f"The key `{key}` in {where}" if option is None else f"{option} (`{key}`)"


def _option(place: Sequence[str], given: Mapping[str, str]) -> str | None:
    """The option that sets a key or one of its parents."""
    above = (".".join(place[:end]) for end in range(len(place), 0, -1))
    return next((given[dotted] for dotted in above if dotted in given), None)


def _shown(value: Any) -> str:
    try:
        return shorter(_QUERY.sub(r"\1***", _USERINFO.sub(r"\1***@", repr(value))))
    except ValueError:  # a number of thousands of digits
        return f"a huge {type(value).__name__}"


def _keys_at(root: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The valid keys at a key path."""
    model, parts = root, iter(location)
    for part in parts:
        field = model.model_fields.get(part)
        inner = None if field is None else model_of(field.annotation)
        if field is None or inner is None:
            break
        model = inner
        if typing.get_origin(field.annotation) is dict:
            next(parts, None)  # the entry's name
    return list(model.model_fields)


def _check_training(training: Mapping[str, Any], where: str, given: Mapping[str, str]) -> None:
    if not training:
        return
    from mrpo_pipeline.recipe.training import FastPaths
    from mrpo_pipeline.recipe.training_arguments_source import training_keys
    from mrpo_pipeline.recipe.training_bounds import RENAMED, out_of_bounds

    own: dict[str, Any] = {key: field.annotation for key, field in FastPaths.model_fields.items()}
    keys = training_keys()
    valid = keys.keys() | own.keys()
    for key in training:
        place = _option(["training", str(key)], given) or where
        if key not in valid and key in RENAMED:
            raise UserError(
                f"Unknown key `training.{key}` in {place}: expected {RENAMED[key]}. Correct it, or take it out."
            )
        if key not in valid:
            near = difflib.get_close_matches(str(key), sorted(valid), n=1, cutoff=0.0)
            raise UserError(
                f"Unknown key `training.{key}` in {place}: keys there are those of transformers.TrainingArguments"
                f" and {', '.join(own)}{' (the output folder is `output_dir` at the top)' if key == 'output_dir' else ''}; the nearest is "
                f"`{near[0]}`. Correct it or take it out."
            )
    for key, value in training.items():
        name = _named(["training", str(key)], where, given)
        expected = out_of_bounds(key, value)
        if expected:
            raise UserError(f"{name} is {_shown(value)}: expected {expected}. Correct the value.")
        try:
            pydantic.TypeAdapter(own[key] if key in own else keys[key].type).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            raise UserError(
                f"{name} is {_shown(value)}: expected {in_words(error.errors())}. Correct the value."
            ) from None
