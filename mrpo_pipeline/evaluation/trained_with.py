"""The recipe that an adapter was trained with, whose method evaluates it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.files import is_hub_name, locate
from mrpo_pipeline.models.source import ModelSource, same_model
from mrpo_pipeline.recipe import Method, Recipe, load_recipe, parse_recipe
from mrpo_pipeline.recipe.check import put
from mrpo_pipeline.recipe.without_effect import refuse_ignored

log = logging.getLogger("mrpo")


def by_its_method(recipe: Recipe, adapter: Path, given: Mapping[str, Any]) -> Recipe:
    """The recipe with the adapter's method, overridden by the command line.

    Args:
        recipe: pairs, policy, references and cache.
        adapter: the adapter's folder; without a ``recipe.yaml`` in it the recipe's own method is used, which is logged.
        given: settings of the command line, by dotted key.

    Raises:
        UserError: if the adapter was trained on another base model than ``policy.model``, or for settings without effect.
    """
    own = adapter / "recipe.yaml"
    if not own.is_file():
        log.info("%s holds no recipe.yaml: the adapter is measured by the method of the recipe given here.", adapter)
        return recipe
    trained = load_recipe(own)
    _require_base(recipe, trained, own)
    method = _with(trained.method, given)
    if method != recipe.method:
        log.info("The method is that of %s, and not the one of the recipe given here.", own)
    if method != trained.method:
        log.warning("The method on the command line is not the one of %s, which the adapter was trained with.", own)
    if method.has_reference and list(trained.references) != list(recipe.references):
        log.warning(
            "The adapter was trained against the references %s, and is measured against %s: loss and rewards are of another target.",
            ", ".join(trained.references), ", ".join(recipe.references),
        )  # fmt: skip
    recipe = recipe.model_copy(update={"method": method})
    refuse_ignored(recipe, given)
    return recipe


def _with(method: Method, given: Mapping[str, Any]) -> Method:
    document: dict[str, Any] = {"method": method.model_dump(mode="json")}
    for key, value in given.items():
        if key.startswith("method."):
            put(document, key, value)
    return parse_recipe(document, "the options").method


def _require_base(recipe: Recipe, trained: Recipe, own: Path) -> None:
    if trained.policy is None or recipe.policy is None:
        return
    there, here = (one.model_copy(update={"adapter": None}) for one in (trained.policy, recipe.policy))
    if not there.loads_like(here) and _known(there) and _known(here) and not same_model(there, here):
        raise UserError(
            f"The adapter was trained on {there.model} ({own}), and policy.model is {here.model}, which has other weights: on "
            "another base an adapter means nothing. Expected the model that it was trained on. Correct policy.model (--model)."
        )


def _known(source: ModelSource) -> bool:
    return is_hub_name(source.model) or locate(source.model, source.revision) is not None
