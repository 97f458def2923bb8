"""Plain data → checked settings; what is wrong is named with the nearest valid key."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pydantic
from pydantic import BaseModel

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe.messages import in_words, place_of
from mrpo_pipeline.recipe.settings import Method, Recipe, Scoring

_MAX_PARTS = 20


def put(document: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key in nested plain data.

    Raises:
        UserError: for a key of more parts than any has.
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
    """The text, or as much of its beginning as fits."""
    return text if len(text) <= most else text[: most - 3] + "..."


def parse_recipe(
    document: Mapping[str, Any], where: str = "the recipe", given: Mapping[str, str] = MappingProxyType({})
) -> Recipe:
    """Check a recipe given as plain data.

    Args:
        where: what errors call the document.
        given: dotted keys that the command line sets, and the option of each, which errors name.
    """
    _refuse_unusable(document, "", where)
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
                f"In {where}, `references` holds {other!r} and {name!r}, which many systems take for one folder of the cache: "
                "expected names that differ in more than capitals. Rename one."
            )
    for name in recipe.references:
        try:
            recipe.scoring_of(name)
        except pydantic.ValidationError as error:
            own = recipe.references[name].scoring
            raise UserError(_explain(error, own, f"references.{name}.scoring", Scoring)) from None
    for name in recipe.compare.methods:
        method_for(recipe, name)
    _check_training({key: recipe.training[key] for key in document.get("training") or {}}, where, given)
    return recipe


def _refuse_unusable(value: Any, key: str, where: str) -> None:
    """Refuse text that no file, path or table can hold (NUL, and halves of a character, as of a shell's undecodable bytes),
    and whole numbers beyond 64 bits, which no library takes."""
    if isinstance(value, str):
        bad = next((char for char in value if char == "\0" or "\ud800" <= char <= "\udfff"), None)
        if bad is not None:
            raise UserError(
                f"The key `{shorter(key)}` in {where} holds the character U+{ord(bad):04X}, at {value.index(bad)}: expected text "
                "that can be written as UTF-8, without NUL. Correct the value."
            )
    elif isinstance(value, int) and value.bit_length() > 63:
        raise UserError(
            f"The key `{shorter(key)}` in {where} is a whole number of {value.bit_length():,} bits: expected one of at most 63. "
            "Correct the value."
        )
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            dotted = f"{key}.{name}" if key else str(name)
            _refuse_unusable(str(name), ascii(dotted)[1:-1], where)
            _refuse_unusable(inner, dotted, where)
    elif isinstance(value, list):
        for inner in value:
            _refuse_unusable(inner, key, where)


def method_for(recipe: Recipe, name: str) -> Method:
    """The method that ``compare.methods`` calls ``name``: the recipe's own with that entry's keys laid over it."""
    document = recipe.method.model_dump(mode="json")
    for key, value in recipe.compare.methods[name].items():
        if isinstance(value, dict) and isinstance(document.get(key), dict):
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
    # A misspelt key is the likelier fault where a required one is missing as well.
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
    # A union reports a problem of each member; where one could read a list, the item that is wrong is to be named.
    places = [place_of(p["loc"], document) for p in problems]
    place = max((one for one in places if one[: len(place)] == place), key=len)
    alike = [p for p, one in zip(problems, places, strict=True) if one == place]
    found = _shown(alike[0].get("input"))
    return f"{_named(place, where, given)} is {found}: expected {in_words(alike)}. Correct the value."


def _named(place: Sequence[str], where: str, given: Mapping[str, str]) -> str:
    """A key as the user wrote it: under the option that sets it, or in the recipe."""
    key, option = shorter(".".join(place)), _option(place, given)
    return f"The key `{key}` in {where}" if option is None else f"{option} (`{key}`)"


def _option(place: Sequence[str], given: Mapping[str, str]) -> str | None:
    """The option that sets a key, or one above it."""
    above = (".".join(place[:end]) for end in range(len(place), 0, -1))
    return next((given[dotted] for dotted in above if dotted in given), None)


def _shown(value: Any) -> str:
    try:
        return shorter(repr(value))
    except ValueError:  # a number of thousands of digits
        return f"a huge {type(value).__name__}"


def _keys_at(root: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The valid keys of the settings class that a key path leads to."""
    model: Any = root
    for part in location:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        field = model.model_fields.get(part)
        if field is None:
            break
        arguments = [field.annotation, *typing.get_args(field.annotation)]
        model = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), model)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _check_training(training: Mapping[str, Any], where: str, given: Mapping[str, str]) -> None:
    if not training:
        return
    from mrpo_pipeline.recipe.training import FastPaths
    from mrpo_pipeline.recipe.training_bounds import RENAMED, out_of_bounds
    from mrpo_pipeline.recipe.training_keys import training_keys

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
