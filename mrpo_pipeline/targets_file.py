"""`mrpo targets`: per pair, what stage two trains against, as one Parquet file for a reader or another program."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from mrpo_pipeline.cached_logps import CachedPairs, join_references, open_caches, pair_targets, target_settings
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.prepare import prepare_splits
from mrpo_pipeline.recipe import Method, Recipe


def targets_frame(pairs: CachedPairs, method: Method) -> pl.DataFrame:
    """The columns of the contract, a row a pair; lists are over the K references in the order of ``references``."""
    targets = pair_targets(pairs, method)
    count = pairs.frame.height
    lists = {
        "logps_chosen": pairs.logps_chosen,
        "logps_rejected": pairs.logps_rejected,
        "weights": targets.weights,
        "clipped_chosen": targets.clipped_chosen,
        "clipped_rejected": targets.clipped_rejected,
    }
    kind = pl.List(pl.Float64)
    return pairs.frame.select("file", "row", "pair_in_row", "id", "pair_id").with_columns(
        pl.Series("references", [pairs.names] * count, dtype=pl.List(pl.String)),
        *(pl.Series(name, values.tolist(), dtype=kind) for name, values in lists.items()),
        pl.Series("target_chosen", targets.target_chosen),
        pl.Series("target_rejected", targets.target_rejected),
    )


def write_targets(recipe: Recipe, output: Path, *, split: str = "train") -> int:
    """Write the targets of one split; the resolved recipe goes beside them.

    Returns:
        the number of pairs written.
    """
    target_settings(recipe.method, [source.name for source in recipe.sources()])
    prepared = prepare_splits(recipe)
    if split not in prepared:
        raise UserError(
            f"--split is {split!r}: this recipe has {', '.join(prepared)}. Correct the option or the recipe."
        )
    pairs = join_references(open_caches(recipe), prepared[split])
    frame = targets_frame(pairs, recipe.method)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    frame.write_parquet(temporary)
    temporary.replace(output)
    output.with_suffix(".recipe.yaml").write_text(recipe.dump(), encoding="utf-8")
    return frame.height
