"""`mrpo targets`: the training targets of every pair, as a Parquet file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mrpo_pipeline.dataset.pair_targets import pair_targets
from mrpo_pipeline.dataset.prepare import prepare_splits
from mrpo_pipeline.dataset.reference_by_column import check_column
from mrpo_pipeline.dataset.reference_logps import CachedPairs, join_splits, open_caches
from mrpo_pipeline.dataset.splits import Split
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.atomic import whole_file, write_whole
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.targets.compute import Targets
from mrpo_pipeline.targets.settings import check_target

log = logging.getLogger("mrpo")

_STEP_COLUMNS = ("weights", "target_chosen", "target_rejected")


def targets_frame(pairs: CachedPairs, targets: Targets) -> pl.DataFrame:
    """One row per pair; lists are over the K references in the order of ``references``.

    With weights that change per step, weights and targets are null.
    """
    count = pairs.frame.height
    lists = {
        "logps_chosen": pairs.logps_chosen,
        "logps_rejected": pairs.logps_rejected,
        "weights": targets.weights,
        "clipped_chosen": targets.clipped_chosen,
        "clipped_rejected": targets.clipped_rejected,
    }
    kind = pl.List(pl.Float64)
    frame = pairs.frame.select("file", "row", "pair_in_row", "id", "pair_id").with_columns(
        pl.Series("references", [pairs.names] * count, dtype=pl.List(pl.String)),
        *(pl.Series(name, values.tolist(), dtype=kind) for name, values in lists.items()),
        pl.Series("target_chosen", targets.target_chosen),
        pl.Series("target_rejected", targets.target_rejected),
    )
    if not targets.step_scoped:
        return frame
    return frame.with_columns(pl.lit(None).cast(frame.schema[name]).alias(name) for name in _STEP_COLUMNS)


def cached_split(recipe: Recipe, split: str) -> CachedPairs:
    """One split, prepared and joined with the sums of every reference. Raises UserError: see ``cached_splits``."""
    return cached_splits(recipe, [split])[split].pairs


def cached_splits(recipe: Recipe, splits: Sequence[str] = ()) -> dict[str, Split]:
    """Splits, prepared and joined with the sums of every reference.

    Args:
        splits: their names; none for ``train`` and, where the recipe has one, ``eval``.

    Raises:
        UserError: for an unknown split, a method that does not fit the references, or completions that are not scored.
    """
    names = [source.name for source in recipe.sources()]
    check_target(recipe.method, names)
    prepared = prepare_splits(recipe)
    splits = splits or [name for name in prepared if name != "weights"]
    for split in splits:
        if split not in prepared:
            raise UserError(f"--split is {split!r}: expected a split of this recipe ({', '.join(prepared)}).")
    check_column(recipe.method, names, {name: part.frame for name, part in prepared.items()})
    needed = {name: part for name, part in prepared.items() if name in (*splits, "weights")}
    joined = join_splits(open_caches(recipe), needed, recipe.limits)
    found = {name: Split(prepared[name], joined[name]) for name in splits}
    for name, split_of in found.items():
        log.info("%s: %s", name, split_of.counts)
    return found


def write_targets(recipe: Recipe, output: Path, *, split: str = "train") -> int:
    """Write the targets of one split, with the resolved recipe beside them; returns the number of pairs."""
    pairs = cached_split(recipe, split)
    targets = pair_targets(pairs, recipe.method)
    for notice in targets.notices:
        log.warning("%s", notice)
    frame = targets_frame(pairs, targets)
    if targets.step_scoped:
        log.warning(
            "Weights by %s change with every training step: log-probs are written, weights and targets are null. The weights of a run are "
            "in its weights.parquet.",
            recipe.method.weights,
        )
    with whole_file(output) as temporary:
        frame.write_parquet(temporary)
    write_whole(output.with_suffix(".recipe.yaml"), recipe.dump())
    return frame.height
