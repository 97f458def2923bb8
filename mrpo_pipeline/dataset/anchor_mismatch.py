"""Compare the policy's start with the anchor by recipe and files, before log-probs are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.source import AS_SERVED, ModelSource, same_model

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

# Fields of a fingerprint that change what a model reads, in words.
_READS = {
    "tokenizer": "another tokenizer",
    "template": "another chat template",
    "end_of_turn": "another end-of-turn token",
    "prepended": "other tokens before the text",
}


@dataclass(frozen=True)
class AnchorStart:
    """Facts on the anchor for the comparison of log-probs with the policy's start."""

    dtype: str | None = None
    """The dtype in which the anchor was scored; None for the policy's. Unknown for a served anchor: the coarsest one."""
    differences: tuple[str, ...] = ()
    """Known differences between the two, one clause each, reported as the cause if their log-probs differ."""


def anchor_start(recipe: Recipe, caches: Sequence[Any]) -> AnchorStart | None:
    """Facts from the recipe's caches (the anchor's first); None if there are no caches or policy.check_anchor is false."""
    if not caches or not recipe.required_policy().check_anchor:
        return None
    fingerprint = caches[0].manifest().fingerprint
    differences = start_differences(recipe) + reading_differences(recipe, fingerprint)
    dtype = fingerprint.get("dtype")
    return AnchorStart("bfloat16" if dtype == AS_SERVED else dtype, tuple(differences))


def start_differences(recipe: Recipe) -> list[str]:
    """Known differences between the policy's start and the anchor as models, one clause each."""
    policy, anchor = recipe.required_policy(), recipe.sources()[0]
    if anchor.served is not None:
        return []
    found = []
    if not _same(policy.model_copy(update={"adapter": None}), anchor.model_copy(update={"adapter": None})):
        found.append(f"policy.model is {_named(policy)} and the anchor's model {_named(anchor)}, with other weights")
    if not _same(anchor.model_copy(update={"adapter": policy.adapter}), anchor):
        found.append(f"policy.adapter is {policy.adapter or 'not set'} and the anchor's {anchor.adapter or 'not set'}")
    if policy.quantization != anchor.quantization:
        found.append(
            f"policy.quantization is {policy.quantization or 'not set'} and the anchor's {anchor.quantization or 'not set'}"
        )
    return found


def reading_differences(recipe: Recipe, anchor: Mapping[str, str]) -> list[str]:
    """Differences in how the policy and the anchor read text, as one clause.

    Args:
        anchor: the fingerprint of the anchor's cache.
    """
    from mrpo_pipeline.rendering.identity_cache import ModelReading

    try:
        own = ModelReading(recipe.required_policy()).identity()
    except UserError:
        return []
    other = [words for field, words in _READS.items() if field in anchor and own.get(field) != anchor[field]]
    return [f"the policy reads text by {' and '.join(other)} than the anchor was scored with"] if other else []


def start_notice(recipe: Recipe) -> str | None:
    """A notice if the policy's start is not compared with the anchor, or is known to be another model; None otherwise."""
    if not recipe.method.has_reference:
        return None
    policy, name = recipe.required_policy(), recipe.sources()[0].name
    differences = start_differences(recipe)
    why = "; ".join(differences)
    if not policy.check_anchor:
        if differences:
            return f"The policy does not start at the anchor {name}: {why} (policy.check_anchor: false)."
        return f"The policy's start is not compared with the anchor {name} (policy.check_anchor: false)."
    if differences:
        return (
            f"The policy is not the anchor {name}: {why}. `mrpo train` compares their log-probs and stops if they differ. If the policy "
            "is meant to start elsewhere, set policy.check_anchor: false (--no-check-anchor)."
        )
    return None


def _same(a: ModelSource, b: ModelSource) -> bool:
    try:
        return same_model(a, b)
    except UserError:  # invalid files are reported when they are loaded
        return (a.model, a.revision, a.adapter) == (b.model, b.revision, b.adapter)


def _named(source: ModelSource) -> str:
    return f"{source.model}@{source.revision}" if source.revision else source.model
