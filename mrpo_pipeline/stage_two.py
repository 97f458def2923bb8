"""Stage two from a recipe: the policy trained against the cached references, none of them in memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from mrpo_pipeline.cached_logps import CachedPairs, join_references, open_caches, target_settings, training_examples
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses import check_loss
from mrpo_pipeline.policy.examples import PreferenceExamples
from mrpo_pipeline.policy.settings import LoraSettings, LossSettings, PolicySettings
from mrpo_pipeline.prepare import Prepared, prepare_splits
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.references import same_model
from mrpo_pipeline.targets import Targets

log = logging.getLogger("mrpo")


@dataclass
class Split:
    """One split, prepared and joined with its cached sums."""

    prepared: Prepared
    pairs: CachedPairs

    def counts(self) -> dict[str, int]:
        """Pairs in = pairs out + pairs dropped by reason, by what is counted."""
        unfit = {
            f"pairs dropped: do not fit the context of {name}": count for name, count in self.pairs.dropped.items()
        }
        return {
            "pairs in": self.prepared.pairs_in,
            "pairs out": self.pairs.frame.height,
            **{f"pairs dropped: {reason}": count for reason, count in self.prepared.dropped.items()},
            **unfit,
            **{f"bad rows skipped: {reason}": count for reason, count in self.prepared.skipped_rows.items()},
            "pairs with a cut prompt": self.prepared.cut_prompts,
            "completions cut": self.prepared.cut_completions,
        }


def loss_settings(method: Method) -> LossSettings:
    """The part of a recipe's method that decides the loss."""
    return LossSettings(
        beta=method.beta, loss=method.loss, label_smoothing=method.label_smoothing, sft_weight=method.sft_weight
    )


def policy_settings(recipe: Recipe, caches: list[Any] | None = None, *, check_anchor: bool = True) -> PolicySettings:
    """The recipe's policy as stage two takes it."""
    policy = recipe.required_policy()
    anchor = recipe.sources()[0]
    manifest = caches[0].manifest() if caches else None
    shared = {"model", "revision", "adapter", "tokenizer", "template", "dtype", "trust_remote_code"}
    return PolicySettings(
        **policy.model_dump(include=shared),
        lora=LoraSettings(**policy.lora.model_dump()),
        starts_at_anchor=same_model(policy.source("policy"), anchor),
        check_anchor=check_anchor and policy.check_anchor,
        anchor_dtype=manifest.fingerprint.get("dtype") if manifest else None,
    )


def check_method(recipe: Recipe, method: Method) -> None:
    """Refuse a method that does not fit the references or cannot have its options, before anything is read."""
    target_settings(method, [source.name for source in recipe.sources()])
    check_loss(method.loss, method.label_smoothing)


def load_splits(recipe: Recipe, caches: list[Any], *needed: str) -> dict[str, Split]:
    """Every split of the recipe, joined with its cached sums.

    Raises:
        UserError: where a needed split is not in the recipe, or a completion is not scored.
    """
    prepared = prepare_splits(recipe)
    for split in needed:
        if split not in prepared:
            keys = {"train": "pairs.train (--train-file)", "eval": "pairs.eval (--eval-file) or pairs.eval_fraction"}
            raise UserError(f"The recipe has no {split} pairs: expected {keys[split]}. Add it.")
    return {name: Split(part, join_references(caches, part)) for name, part in prepared.items() if name != "weights"}


def examples_of(split: Split, method: Method) -> tuple[PreferenceExamples, Targets]:
    """The split's pairs with the targets of one method; what the user should know of them is said."""
    examples, targets = training_examples(split.pairs, method)
    for notice in targets.notices:
        log.warning("%s", notice)
    return examples, targets


def train_recipe(recipe: Recipe, *, resume: bool = False, check_anchor: bool = True) -> dict[str, float]:
    """Train the policy as the recipe says; see ``mrpo_pipeline.policy.train`` for what lies in the output folder.

    Raises:
        UserError: for a recipe, pairs or caches that are wrong, and for a policy that does not agree with the anchor.
        RunError: for a loss or gradient that is not finite.
    """
    from mrpo_pipeline.policy.train import train_policy

    check_method(recipe, recipe.method)
    caches = open_caches(recipe)
    splits = load_splits(recipe, caches, "train")
    examples, targets = examples_of(splits["train"], recipe.method)
    eval_examples, eval_targets = examples_of(splits["eval"], recipe.method) if "eval" in splits else (None, None)
    recipe.write(recipe.output_dir)
    return train_policy(
        policy_settings(recipe, caches, check_anchor=check_anchor),
        examples,
        eval_examples,
        loss_settings(recipe.method),
        recipe.training_arguments(),
        recipe.output_dir,
        resume=resume,
        card=card_of(recipe, splits),
        diagnostics=targets.diagnostics,
        eval_diagnostics=eval_targets.diagnostics if eval_targets else None,
    )


def describe(method: Method) -> str:
    """One line that says what was trained against."""
    if method.name == "dpo":
        against = "DPO against the anchor alone"
    elif method.aggregate.startswith("single:"):
        against = f"DPO against the reference {method.aggregate.removeprefix('single:')} alone"
    else:
        against = "Multi-DPO" if method.name == "multi-dpo" else f"MRPO with the {method.aggregate} aggregate"
        region = method.trust_region
        against += f", {method.weights} weights, trust region {region.kind}"
        against += "" if region.kind == "off" else f" (ε {region.epsilon:g})"
    return f"{against}; {method.loss} loss, β {method.beta:g}."


def card_of(recipe: Recipe, splits: dict[str, Split]) -> dict[str, Any]:
    """What the model card tells besides the metrics."""
    return {
        "method": describe(recipe.method),
        "recipe": recipe.dump(),
        "references": [{"name": source.name, "model": source.model} for source in recipe.sources()],
        "data": {f"{name}: {what}": count for name, split in splits.items() for what, count in split.counts().items()},
    }


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed."""
    return recipe.model_copy(update={"training": {**recipe.training, "seed": seed}})


def trained(settings: PolicySettings, adapter: str) -> PolicySettings:
    """The policy after training: the same base with the trained adapter."""
    return replace(settings, adapter=adapter)
