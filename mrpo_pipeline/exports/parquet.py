"""`mrpo targets`: per pair, what stage two trains against, as one Parquet file for a reader or another program."""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl

from mrpo_pipeline.dataset.prepare import prepare_splits
from mrpo_pipeline.dataset.reference_logps import CachedPairs, join_splits, open_caches, pair_targets
from mrpo_pipeline.dataset.splits import Split
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.atomic import whole_file, write_whole
from mrpo_pipeline.pairs.counting import in_words
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.targets.compute import Targets
from mrpo_pipeline.targets.settings import check_target

log = logging.getLogger("mrpo")

_OF_A_STEP = ("weights", "target_chosen", "target_rejected")


def targets_frame(pairs: CachedPairs, targets: Targets) -> pl.DataFrame:
    """The columns of the contract, a row a pair; lists are over the K references in the order of ``references``.

    Where weights change from step to step no pair has weights or a target of its own: those columns are null.
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
    return frame.with_columns(pl.lit(None).cast(frame.schema[name]).alias(name) for name in _OF_A_STEP)


def cached_split(recipe: Recipe, split: str) -> CachedPairs:
    """One split, prepared and joined with the sums of every reference.

    Raises:
        UserError: for a split that the recipe has not, a method that does not fit the references, or what is not scored.
    """
    check_target(recipe.method, [source.name for source in recipe.sources()])
    prepared = prepare_splits(recipe)
    if split not in prepared:
        raise UserError(
            f"--split is {split!r}: expected one that this recipe has ({', '.join(prepared)}). Correct the option or the recipe."
        )
    needed = {name: part for name, part in prepared.items() if name in (split, "weights")}
    joined = join_splits(open_caches(recipe), needed, recipe.limits)[split]
    log.info("%s: %s", split, in_words(Split(prepared[split], joined).counts()))
    return joined


def write_targets(recipe: Recipe, output: Path, *, split: str = "train") -> int:
    """Write the targets of one split; the resolved recipe goes beside them.

    Returns:
        the number of pairs written.
    """
    pairs = cached_split(recipe, split)
    targets = pair_targets(pairs, recipe.method)
    for notice in targets.notices:
        log.warning("%s", notice)
    frame = targets_frame(pairs, targets)
    if targets.step_scoped:
        log.warning(
            "Weights by %s change with every training step, so no pair has a target of its own: log-probs are written, and "
            "weights and targets are null. What a run chose is in its weights.parquet.",
            recipe.method.weights,
        )
    with whole_file(output) as temporary:
        frame.write_parquet(temporary)
    write_whole(output.with_suffix(".recipe.yaml"), recipe.dump())
    return frame.height
