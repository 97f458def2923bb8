"""Splits of the pairs, prepared and joined with their cached sums."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.loss_compatibility import check_losses
from mrpo_pipeline.dataset.modpo_rewards import check_objectives
from mrpo_pipeline.dataset.pair_targets import no_held_out_pairs, training_examples
from mrpo_pipeline.dataset.prepare import prepare_splits
from mrpo_pipeline.dataset.reference_by_column import check_column
from mrpo_pipeline.dataset.reference_logps import CachedPairs, join_splits
from mrpo_pipeline.dataset.truncate import Prepared
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.counts import Counts, require_balance
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.targets.compute import Targets
from mrpo_pipeline.targets.settings import check_target

log = logging.getLogger("mrpo")

# Losses that use means per token even with ``normalize: sum``.
PER_TOKEN_LOSSES = {"ipo", "sigmoid-norm", "simpo"}


@dataclass
class Split:
    """One split, prepared and joined with its cached sums."""

    prepared: Prepared
    pairs: CachedPairs

    @property
    def counts(self) -> Counts:
        """Numbers of pairs read, used, and dropped by reason."""
        prepared = self.prepared.counts
        dropped = {**prepared.dropped, **self.pairs.dropped}
        return replace(prepared, used=self.pairs.frame.height, dropped=dropped).checked("pairs")


def check_method(recipe: Recipe, method: Method) -> None:
    """Refuse a method that does not fit the references or its own options, before anything is read."""
    names = [source.name for source in recipe.sources()] if method.has_reference else []
    check_target(method, names)
    if method.needs_held_out(names) and not recipe.pairs.weights_fraction:
        raise no_held_out_pairs(method)
    check_losses(method, names)
    check_objectives(method, names)


def check_columns(method: Method, splits: Mapping[str, Split]) -> None:
    """Raise UserError for weights by a column that the pairs do not have, see ``check_column``."""
    names = next(iter(splits.values())).pairs.names
    check_column(method, names, {name: split.prepared.frame for name, split in splits.items()})


def load_splits(recipe: Recipe, caches: list[Any], *needed: str, report: bool = True) -> dict[str, Split]:
    """Every split of the recipe, joined with its cached sums.

    Args:
        needed: splits that the recipe must have. report: log the counts of each split.

    Raises:
        UserError: for a missing split, or a completion that is not scored.
    """
    prepared = prepare_splits(recipe, report=report)
    for split in needed:
        if split not in prepared:
            keys = {"train": "pairs.train (--train-file)", "eval": "pairs.eval (--eval-file) or pairs.eval_fraction"}
            raise UserError(f"The recipe has no {split} pairs: expected {keys[split]}. Add it.")
    return {name: Split(prepared[name], pairs) for name, pairs in join_splits(caches, prepared, recipe.limits).items()}


def examples_of(split: Split, method: Method, *, report: bool = True) -> tuple[PreferenceExamples, Targets]:
    """Training examples of a split for one method, and their targets.

    Args:
        report: log notices on the targets; false if those of the training pairs were logged before.
    """
    examples, targets = training_examples(split.pairs, method)
    for notice in (*targets.notices, *_on_beta(method, targets)) if report else ():
        log.warning("%s", notice)
    require_balance("making targets", split.pairs.frame.height, len(examples))
    return examples, targets


def _on_beta(method: Method, targets: Targets) -> Iterator[str]:
    """A notice on the default β with ``normalize``, which makes log-ratios smaller by the length of a completion."""
    usual = Method.model_fields["beta"].default
    if targets.chosen_units is None or targets.rejected_units is None or method.beta != usual:
        return
    if not set(method.losses) - {"sft"} - PER_TOKEN_LOSSES:
        return
    length = float(np.mean([targets.chosen_units, targets.rejected_units]))
    yield (
        f"With method.normalize {method.normalize} β multiplies nats per {method.normalize}, and β is {usual:g}, the default for sums: for "
        f"margins of the same size set it to about {usual * length:.3g} (a completion has {length:,.0f} {method.normalize}s on average)."
    )
