"""Prepared pairs joined with the cached sums of every reference: what targets are made of. No model is loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.examples import PreferenceExamples
from mrpo_pipeline.policy.id_rows import IdRows
from mrpo_pipeline.prepare import Prepared, renderer_of
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.references import ModelSource, resolve
from mrpo_pipeline.targets import Targets, TargetSettings, compute_targets

log = logging.getLogger("mrpo")

Floats = npt.NDArray[np.float64]
SIDES = ("chosen", "rejected")


@dataclass
class CachedPairs:
    """N pairs that every reference can serve, with their sums.

    ``frame`` has the columns of ``Prepared.frame``; ``logps_chosen`` and ``logps_rejected`` are (N, K), nats, the anchor
    in column 0; ``dropped`` counts the pairs that are left out, by the reference whose context they do not fit.
    """

    frame: pl.DataFrame
    names: list[str]
    logps_chosen: Floats
    logps_rejected: Floats
    dropped: dict[str, int]


def open_caches(recipe: Recipe) -> list[ReferenceCache]:
    """The recipe's caches, each checked against the reference that the recipe names, as far as its files are at hand."""
    caches = []
    for source in recipe.sources():
        cache = ReferenceCache.open(recipe.cache, source.name)
        cache.check(resolve(source, _identity(source)))
        caches.append(cache)
    return caches


def _identity(source: ModelSource) -> dict[str, str] | None:
    """How the reference reads text; None where its tokenizer is not at hand, as on another machine than stage one's."""
    try:
        return renderer_of(source).identity()
    except UserError as error:
        log.info(
            "%s: its tokenizer is not at hand, so its cache is taken at its word (%s)",
            source.name,
            str(error).split(".")[0],
        )
        return None


def join_references(caches: list[ReferenceCache], prepared: Prepared) -> CachedPairs:
    """Look up every pair's sums; pairs that do not fit a reference's context are dropped for all and counted.

    Raises:
        UserError: for completions that are not scored yet, with the command that scores them.
    """
    frame = prepared.frame
    dropped: dict[str, int] = {}
    keep = np.ones(frame.height, dtype=bool)
    for cache in caches:
        unfit = pl.concat([cache.unfit(_wanted(frame, side)).select("completion_id") for side in SIDES])[
            "completion_id"
        ]
        if unfit.is_empty():
            continue
        hit = (frame["chosen_id"].is_in(unfit.implode()) | frame["rejected_id"].is_in(unfit.implode())).to_numpy()
        if hit.any():
            dropped[cache.name] = int(hit.sum())
            keep &= ~hit
    frame = frame.filter(pl.Series(keep))
    if not frame.height:
        raise UserError(
            f"Of {prepared.pairs_in:,} pairs none is left to work with: {prepared.summary()}"
            + "".join(f", {count:,} do not fit {name}'s context" for name, count in dropped.items())
            + ". Expected at least one. Raise limits.max_length, or look at the pairs."
        )
    for name, count in dropped.items():
        log.warning("%s of %s pairs do not fit %s's context: left out for all.", f"{count:,}", f"{len(keep):,}", name)
    sums = {side: np.empty((frame.height, len(caches))) for side in SIDES}
    wanted = pl.concat([_wanted(frame, side) for side in SIDES])
    # The same completions of every cache: what is asked for, and where its answer goes, is worked out once.
    distinct = wanted.unique().sort("completion_id", "cut", nulls_last=True)
    places = wanted.join(distinct.with_row_index("at"), on=["completion_id", "cut"], how="left", nulls_equal=True,
                         maintain_order="left")["at"].to_numpy()  # fmt: skip
    for column, cache in enumerate(caches):
        both = cache.sums(distinct)["logps"].to_numpy()[places]
        sums["chosen"][:, column], sums["rejected"][:, column] = both[: frame.height], both[frame.height :]
    return CachedPairs(frame, [cache.name for cache in caches], sums["chosen"], sums["rejected"], dropped)


def _wanted(frame: pl.DataFrame, side: str) -> pl.DataFrame:
    return frame.select(pl.col(f"{side}_id").alias("completion_id"), pl.col(f"{side}_cut").alias("cut"))


def target_settings(method: Method, names: list[str]) -> TargetSettings:
    """The part of a recipe's method that decides log π̃.

    Raises:
        UserError: where the method does not fit the references.
    """
    return TargetSettings(
        reference_names=names,
        name=method.name,
        aggregate=method.aggregate,
        weights=method.weights,
        temperature=method.weights_options.temperature,
        floor=method.weights_options.floor,
        trust_region=method.trust_region.kind,
        epsilon=method.trust_region.epsilon,
        compatibility=method.compatibility,
        normalize=method.normalize,
    )


def _units(pairs: CachedPairs, side: str, normalize: str) -> Floats | None:
    """(N,) what each side's log-probs are divided by: the policy's tokens, or the bytes, that count."""
    if normalize == "token":
        counts = pairs.frame[f"{side}_ids"].list.len()
    elif normalize == "byte":
        counts = pairs.frame.select(pl.coalesce(f"{side}_cut", pl.col(side).str.len_bytes())).to_series()
    else:
        return None
    return counts.cast(pl.Float64).to_numpy()


def pair_targets(pairs: CachedPairs, method: Method) -> Targets:
    """Weights, clipped log-probs and log π̃ of every pair."""
    return compute_targets(
        pairs.logps_chosen,
        pairs.logps_rejected,
        target_settings(method, pairs.names),
        units_chosen=_units(pairs, "chosen", method.normalize),
        units_rejected=_units(pairs, "rejected", method.normalize),
    )


def training_examples(pairs: CachedPairs, method: Method) -> tuple[PreferenceExamples, Targets]:
    """Pairs as stage two takes them, and their targets."""
    targets = pair_targets(pairs, method)
    inputs = targets.loss_inputs()
    frame = pairs.frame
    examples = PreferenceExamples(
        pair_ids=frame["pair_id"].to_list(),
        prompt_ids=_id_rows(frame["prompt_ids"]),
        chosen_ids=_id_rows(frame["chosen_ids"]),
        rejected_ids=_id_rows(frame["rejected_ids"]),
        reference_chosen=inputs.reference_chosen,
        reference_rejected=inputs.reference_rejected,
        weights=inputs.weights,
        anchor_chosen=pairs.logps_chosen[:, 0],
        anchor_rejected=pairs.logps_rejected[:, 0],
        chosen_units=inputs.chosen_units,
        rejected_units=inputs.rejected_units,
    )
    return examples, targets


def _id_rows(column: pl.Series) -> IdRows:
    """A list column's values as they lie in memory, or in the file that they are mapped from."""
    flat = column.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return IdRows(flat, column.list.len().cast(pl.Int64).to_numpy())
