"""Splits of the pairs, prepared and joined with their cached sums."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.modpo_rewards import check_objectives
from mrpo_pipeline.dataset.prepare import Prepared, prepare_splits
from mrpo_pipeline.dataset.reference_logps import (
    CachedPairs,
    join_splits,
    no_held_out_pairs,
    training_examples,
)
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses.settings import check_loss
from mrpo_pipeline.pairs.counting import require_balance
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.targets.compute import Targets
from mrpo_pipeline.targets.settings import check_target

log = logging.getLogger("mrpo")


@dataclass
class Split:
    """One split, prepared and joined with its cached sums."""

    prepared: Prepared
    pairs: CachedPairs

    def counts(self) -> dict[str, int]:
        """Pairs in = pairs out + pairs dropped by reason, by what is counted."""
        dropped = {**self.prepared.dropped, **self.pairs.dropped}
        require_balance("pairs", self.prepared.pairs_in, self.pairs.frame.height, dropped)
        return {
            "pairs in": self.prepared.pairs_in,
            "pairs out": self.pairs.frame.height,
            **{f"pairs dropped: {reason}": count for reason, count in dropped.items()},
            **{f"rows left out: {reason}": count for reason, count in self.prepared.skipped_rows.items()},
            "pairs with a cut prompt": self.prepared.cut_prompts,
            "completions cut": self.prepared.cut_completions,
        }


def check_method(recipe: Recipe, method: Method) -> None:
    """Refuse a method that does not fit the references or cannot have its options, before anything is read."""
    names = [source.name for source in recipe.sources()]
    check_target(method, names)
    if method.needs_held_out(names) and not recipe.pairs.weights_fraction:
        raise no_held_out_pairs(method)
    check_loss(method)
    check_objectives(method, names)
    if method.loss == "mpo" and method.sft_weight:
        raise UserError(
            f"The setting method.sft_weight is {method.sft_weight:g} with method.loss mpo, which has an SFT term of its own "
            f"(method.mpo.sft, {method.mpo.sft:g}): expected 0. Set method.sft_weight to 0, and method.mpo.sft to what it is to count."
        )


def load_splits(recipe: Recipe, caches: list[Any], *needed: str, say: bool = True) -> dict[str, Split]:
    """Every split of the recipe, joined with its cached sums.

    Args:
        needed: splits that must be there. say: whether to say how many pairs were read and kept.

    Raises:
        UserError: where a needed split is not in the recipe, or a completion is not scored.
    """
    prepared = prepare_splits(recipe, say=say)
    for split in needed:
        if split not in prepared:
            keys = {"train": "pairs.train (--train-file)", "eval": "pairs.eval (--eval-file) or pairs.eval_fraction"}
            raise UserError(f"The recipe has no {split} pairs: expected {keys[split]}. Add it.")
    return {name: Split(prepared[name], pairs) for name, pairs in join_splits(caches, prepared, recipe.limits).items()}


def examples_of(split: Split, method: Method, *, say: bool = True) -> tuple[PreferenceExamples, Targets]:
    """The split's pairs with the targets of one method; what the user should know of them is said.

    Args:
        say: false for a split whose method was spoken of already, with the training pairs.
    """
    examples, targets = training_examples(split.pairs, method)
    for notice in (*targets.notices, *_on_beta(method, targets)) if say else ():
        log.warning("%s", notice)
    require_balance("making targets", split.pairs.frame.height, len(examples))
    return examples, targets


def _on_beta(method: Method, targets: Targets) -> Iterator[str]:
    """Log-ratios in another unit are smaller by the length of a completion, and β is what they are multiplied by."""
    usual = Method.model_fields["beta"].default
    if targets.chosen_units is None or targets.rejected_units is None or method.beta != usual or method.loss == "ipo":
        return  # IPO takes means by itself
    length = float(np.mean([targets.chosen_units, targets.rejected_units]))
    yield (
        f"With method.normalize {method.normalize} β multiplies nats per {method.normalize}, and β is {usual:g}, the default, which is "
        f"for sums: for margins of the same size set it to about {usual * length:.3g} (a completion has {length:,.0f} "
        f"{method.normalize}s on average)."
    )
