"""Prepared pairs joined with the cached sums of every reference: what targets are made of. No model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.modpo_rewards import objective_margins
from mrpo_pipeline.dataset.nothing_left import handful, nothing_left, short_context
from mrpo_pipeline.dataset.prepare import Prepared, renderer_of, report_reading
from mrpo_pipeline.dataset.ragged_ids import IdRows, MaskRows
from mrpo_pipeline.dataset.shared_prompt import scored_counts
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.source import ModelSource, as_recorded, has_tokenizer, resolve
from mrpo_pipeline.pairs.completion import text_bytes
from mrpo_pipeline.pairs.counting import require_balance
from mrpo_pipeline.recipe import Limits, Method, Recipe
from mrpo_pipeline.targets.compute import Targets, compute_targets
from mrpo_pipeline.targets.settings import check_target
from mrpo_pipeline.targets.validation_weights import ValidationWeights, validation_weights

log = logging.getLogger("mrpo")

Floats = npt.NDArray[np.float64]
SIDES = ("chosen", "rejected")


@dataclass
class CachedPairs:
    """N pairs that every reference can serve, with their sums.

    ``frame`` has the columns of ``Prepared.frame``; ``logps_chosen`` and ``logps_rejected`` are (N, K), nats, the anchor
    in column 0; ``dropped`` counts the pairs that are left out, each once, by the references that cannot read them and why.
    ``held_out`` are the pairs of the recipe's third split, which some weights look at; None where it has none.
    """

    frame: pl.DataFrame
    names: list[str]
    logps_chosen: Floats
    logps_rejected: Floats
    dropped: dict[str, int]
    held_out: CachedPairs | None = None


def open_caches(recipe: Recipe) -> list[ReferenceCache]:
    """The recipe's caches, each checked against the reference that the recipe names, as far as its files are at hand."""
    caches = []
    for source in recipe.sources():
        cache = ReferenceCache.open(recipe.cache, source.name)
        cache.check(resolve(as_recorded(source, cache.fingerprint()), _identity(source)))
        caches.append(cache)
    return caches


def _identity(source: ModelSource) -> dict[str, str] | None:
    """How the reference reads text; None where its tokenizer is not at hand, as on another machine than stage one's.

    Raises:
        UserError: for a tokenizer or template that is at hand and cannot be used: it is not the one that read the cache's text.
    """
    try:
        renderer = renderer_of(source)
        report_reading(source.name, renderer)
        return renderer.identity()
    except UserError as error:
        if has_tokenizer(source):
            raise
        log.info(
            "%s: its tokenizer is not at hand, so its cache is taken at its word (%s)",
            source.name,
            str(error).split(".")[0],
        )
        return None


def join_references(
    caches: list[ReferenceCache], prepared: Prepared, limits: Limits | None = None, *, what: str = ""
) -> CachedPairs:
    """Look up every pair's sums; pairs that do not fit a reference's context are dropped for all and counted.

    Args:
        limits: of the recipe; where given, the length that would keep dropped pairs is logged. what: the split's name.

    Raises:
        UserError: for completions that are not scored yet, with the command that scores them.
        RunError: where no pair is left.
    """
    frame = prepared.frame
    hints = _context_hints(caches, frame, limits) if limits is not None and frame.height else []
    keep, dropped = _readable(caches, frame)
    given = frame.height
    # Where every pair stays, so does the table: it may be mapped from a file.
    frame = frame if keep.all() else frame.filter(pl.Series(keep))
    require_balance("joining pairs with the references", given, frame.height, dropped)
    if not frame.height:
        every = {**prepared.dropped, **dropped}
        hint = ". ".join(hints) if given else ""
        raise nothing_left(what or "prepared", prepared.pairs_in, every, prepared.skipped_rows, hint)
    for reason, count in dropped.items():
        log.warning("%s of %s pairs are left out for all references: %s.", f"{count:,}", f"{given:,}", reason)
    for hint in hints:
        log.warning("%s.", hint)
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


def _readable(caches: list[ReferenceCache], frame: pl.DataFrame) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """(N,) which pairs every reference can read; and the others counted by reason. A pair that several cannot read is counted
    once, under all of them."""
    hits: dict[str, npt.NDArray[np.bool_]] = {}
    for cache in caches:
        unfit = pl.concat([cache.unfit(_wanted(frame, side)).select("completion_id", "tokens") for side in SIDES])
        for part, why in (
            (unfit.filter(pl.col("tokens") > 0), f"do not fit the context of {cache.name}"),
            (unfit.filter(pl.col("tokens") == 0), f"are not written by the template of {cache.name}"),
        ):
            if part.height:
                ids = part["completion_id"].implode()
                hit = (frame["chosen_id"].is_in(ids) | frame["rejected_id"].is_in(ids)).to_numpy()
                if hit.any():
                    hits[why] = hit
    if not hits:
        return np.ones(frame.height, dtype=bool), {}
    table = np.stack(list(hits.values()), axis=1)  # (N, reasons)
    kinds, counts = np.unique(table[table.any(axis=1)], axis=0, return_counts=True)
    names = np.array(list(hits))
    dropped = {" and ".join(names[kind]): int(count) for kind, count in zip(kinds, counts, strict=True)}
    keep: npt.NDArray[np.bool_] = np.logical_not(table.any(axis=1))
    return keep, dropped


def _context_hints(caches: list[ReferenceCache], frame: pl.DataFrame, limits: Limits) -> list[str]:
    """For each reference whose context leaves pairs out, how many, and the length that keeps them."""
    found = []
    for cache in caches:
        unfit = pl.concat([cache.unfit(_wanted(frame, side)) for side in SIDES]).filter(pl.col("tokens") > 0)
        if unfit.height:
            found.append(short_context(cache.name, int(unfit["context"].to_list()[0]), limits, [frame], unfit))
    return [text for text in found if text is not None]


def join_splits(
    caches: list[ReferenceCache], prepared: Mapping[str, Prepared], limits: Limits | None = None
) -> dict[str, CachedPairs]:
    """Every split's pairs with their sums; the third split's, ``weights``, stand with each as well."""
    joined = {name: join_references(caches, part, limits, what=name) for name, part in prepared.items()}
    for name, pairs in joined.items():
        few = handful(name, pairs.frame.height, prepared[name].pairs_in)
        if few is not None:
            log.warning("%s", few)
    held_out = joined.get("weights")
    return {name: replace(pairs, held_out=held_out) for name, pairs in joined.items()}


def _wanted(frame: pl.DataFrame, side: str) -> pl.DataFrame:
    return frame.select(pl.col(f"{side}_id").alias("completion_id"), pl.col(f"{side}_cut").alias("cut"))


def _units(pairs: CachedPairs, side: str, normalize: str) -> Floats | None:
    """(N,) what each side's log-probs are divided by: the policy's tokens, or the bytes, that count."""
    if normalize == "token":
        counts = scored_counts(pairs.frame, side)
    elif normalize == "byte":
        counts = pairs.frame[f"{side}_cut"].fill_null(text_bytes(pairs.frame[side]))
    else:
        return None
    return counts.cast(pl.Float64).to_numpy(writable=True)  # torch warns of tensors over what can't be written to


def no_held_out_pairs(method: Method) -> UserError:
    """What to say where weights look at a third split that the recipe has not."""
    return UserError(
        f"The setting method.weights is {method.weights!r}, which looks at pairs that are held out from training and "
        "evaluation alike, and the recipe has none: expected pairs.weights_fraction above 0, 0.05 say (and pairs.train, from "
        "which they are taken). Set it."
    )


def held_out_weights(pairs: CachedPairs, method: Method) -> ValidationWeights | None:
    """What the third split makes of the weights; None where the method's weights do not come from it alone.

    Raises:
        UserError: where they do, and there is no such split.
    """
    check_target(method, pairs.names)
    if not method.needs_held_out(pairs.names):
        return None
    if pairs.held_out is None:
        raise no_held_out_pairs(method)
    if method.is_step_scoped(pairs.names):
        return None
    held_out = pairs.held_out
    return validation_weights(
        held_out.logps_chosen,
        held_out.logps_rejected,
        method,
        pairs.names,
        units_chosen=_units(held_out, "chosen", method.normalize),
        units_rejected=_units(held_out, "rejected", method.normalize),
    )


def pair_targets(pairs: CachedPairs, method: Method) -> Targets:
    """Weights, clipped log-probs and log π̃ of every pair.

    Raises:
        UserError: for weights that look at a third split where the recipe has none.
    """
    held_out = held_out_weights(pairs, method)
    targets = compute_targets(
        pairs.logps_chosen,
        pairs.logps_rejected,
        method,
        pairs.names,
        units_chosen=_units(pairs, "chosen", method.normalize),
        units_rejected=_units(pairs, "rejected", method.normalize),
        held_out_weights=None if held_out is None else held_out.row,
    )
    return targets if held_out is None else replace(targets, notices=(*targets.notices, held_out.notice))


def training_examples(pairs: CachedPairs, method: Method) -> tuple[PreferenceExamples, Targets]:
    """Pairs as stage two takes them, and their targets.

    Raises:
        UserError: for weights that look at a third split where the recipe has none, and rewards that are no numbers.
    """
    targets = pair_targets(pairs, method)
    inputs = targets.loss_inputs()
    frame = pairs.frame
    judges = _judges(pairs, method) if targets.step_scoped and method.needs_held_out(pairs.names) else None
    if judges is not None and pairs.held_out is not None:
        count = f"{len(judges):,} of the {pairs.held_out.frame.height:,} pairs of the weights split"
        targets = replace(targets, notices=(*targets.notices, f"Thompson sampling judges references by {count}."))
    examples = PreferenceExamples(
        pair_ids=frame["pair_id"].to_list(),
        prompt_ids=_id_rows(frame["prompt_ids"]),
        chosen_ids=_id_rows(frame["chosen_ids"]),
        rejected_ids=_id_rows(frame["rejected_ids"]),
        chosen_scored=_mask_rows(frame["chosen_scored"]),
        rejected_scored=_mask_rows(frame["rejected_scored"]),
        reference_chosen=inputs.reference_chosen,
        reference_rejected=inputs.reference_rejected,
        weights=inputs.weights,
        anchor_chosen=pairs.logps_chosen[:, 0],
        anchor_rejected=pairs.logps_rejected[:, 0],
        chosen_units=inputs.chosen_units,
        rejected_units=inputs.rejected_units,
        margins=objective_margins(method, frame, _by_name(pairs, targets)),
        step_references=pairs.names if targets.step_scoped else None,
        judges=judges,
    )
    return examples, targets


def _by_name(pairs: CachedPairs, targets: Targets) -> dict[str, tuple[Floats, Floats]]:
    """Each reference's log-probs of both sides, (N,), in the unit of ``normalize``."""
    units = [1.0 if counts is None else counts for counts in (targets.chosen_units, targets.rejected_units)]
    return {
        name: (pairs.logps_chosen[:, k] / units[0], pairs.logps_rejected[:, k] / units[1])
        for k, name in enumerate(pairs.names)
    }


def _judges(pairs: CachedPairs, method: Method) -> PreferenceExamples:
    """The pairs of the third split by which Thompson sampling judges: those that come first by their ids, which are hashes, so
    a sample that file and order have no part in. Only the policy's tokens of them are looked at."""
    assert pairs.held_out is not None
    held_out = pairs.held_out
    rows = np.argsort(held_out.frame["pair_id"].to_numpy(), kind="stable")[: method.weights_options.pairs]
    few = CachedPairs(held_out.frame[rows], pairs.names, held_out.logps_chosen[rows], held_out.logps_rejected[rows], {})
    return training_examples(few, Method(name="dpo"))[0]


def _id_rows(column: pl.Series) -> IdRows:
    """A list column's values as they lie in memory, or in the file that they are mapped from."""
    flat = column.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return IdRows(flat, column.list.len().cast(pl.Int64).to_numpy())


def _mask_rows(column: pl.Series) -> MaskRows | None:
    if column.null_count() == len(column):
        return None
    flat = column.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return MaskRows(flat, column.list.len().fill_null(0).cast(pl.Int64).to_numpy())
