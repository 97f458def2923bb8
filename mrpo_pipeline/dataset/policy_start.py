"""Does the policy start at the anchor? What the recipe and the files tell, before log-probs are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.source import ModelSource, same_model

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

# Fields of a fingerprint that decide what a model reads, in the words of a user.
_READS = {
    "tokenizer": "another tokenizer",
    "template": "another chat template",
    "end_of_turn": "another end-of-turn token",
    "prepended": "other tokens before the text",
}


@dataclass(frozen=True)
class AnchorStart:
    """What the policy's start is compared with beside the cached anchor's log-probs."""

    dtype: str | None = None
    """In which the anchor was scored; None for the policy's own."""
    differences: tuple[str, ...] = ()
    """What is known to make the two differ, one clause for each: the cause, where they do."""


def anchor_start(recipe: Recipe, caches: Sequence[Any]) -> AnchorStart | None:
    """Of the recipe's caches, the anchor's first; None where the policy's start is not to be compared with it."""
    if not recipe.required_policy().check_anchor:
        return None
    fingerprint = caches[0].manifest().fingerprint
    differences = start_differences(recipe) + reading_differences(recipe, fingerprint)
    return AnchorStart(fingerprint.get("dtype"), tuple(differences))


def start_differences(recipe: Recipe) -> list[str]:
    """What makes the policy's start another model than the anchor, one clause for each; empty where nothing is known to."""
    policy, anchor = recipe.required_policy(), recipe.sources()[0]
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
    """How the policy reads text otherwise than the anchor did.

    Args:
        anchor: the fingerprint of the anchor's cache.
    """
    from mrpo_pipeline.dataset.prepare import policy_renderer

    try:
        own = policy_renderer(recipe).identity()
    except UserError:
        return []
    other = [words for field, words in _READS.items() if field in anchor and own.get(field) != anchor[field]]
    return [f"the policy reads text by {' and '.join(other)} than the anchor was scored with"] if other else []


def start_notice(recipe: Recipe) -> str | None:
    """What a user must know of the policy's start; None where it is the anchor's model and is compared with it."""
    policy, name = recipe.required_policy(), recipe.sources()[0].name
    differences = start_differences(recipe)
    why = "; ".join(differences)
    if not policy.check_anchor:
        if differences:
            return f"The policy does not start at the anchor {name}: {why} (policy.check_anchor: false)."
        return f"The policy's start is not compared with the anchor {name} (policy.check_anchor: false)."
    if differences:
        return (
            f"The policy is not the anchor {name}: {why}. `mrpo train` compares their log-probs and stops where they differ. If the "
            "policy is to start elsewhere, set policy.check_anchor: false (--no-check-anchor)."
        )
    return None


def _same(a: ModelSource, b: ModelSource) -> bool:
    try:
        return same_model(a, b)
    except UserError:  # files that are wrong are for what loads them to report
        return (a.model, a.revision, a.adapter) == (b.model, b.revision, b.adapter)


def _named(source: ModelSource) -> str:
    return f"{source.model}@{source.revision}" if source.revision else source.model
