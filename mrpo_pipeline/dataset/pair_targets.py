"""Compute the targets of joined pairs, and make training examples of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.loss_compatibility import floored_margins
from mrpo_pipeline.dataset.modpo_rewards import objective_margins
from mrpo_pipeline.dataset.ragged_ids import IdRows, MaskRows
from mrpo_pipeline.dataset.reference_by_column import chosen_references
from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.dataset.reference_span_logps import pair_spans
from mrpo_pipeline.dataset.shared_prompt import scored_counts
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import text_bytes
from mrpo_pipeline.recipe import Method
from mrpo_pipeline.targets.compute import Targets, compute_targets
from mrpo_pipeline.targets.settings import check_target
from mrpo_pipeline.targets.validation_weights import ValidationWeights, validation_weights

Floats = npt.NDArray[np.float64]


def _units(pairs: CachedPairs, side: str, normalize: str) -> Floats | None:
    """(N,) divisors of a side's log-probs: the policy's tokens or the bytes up to the cut; None for sums."""
    if normalize == "token":
        counts = scored_counts(pairs.frame, side)
    elif normalize == "byte":
        counts = pairs.frame[f"{side}_cut"].fill_null(text_bytes(pairs.frame[side]))
    else:
        return None
    return counts.cast(pl.Float64).to_numpy(writable=True)  # torch warns about tensors over read-only arrays


def no_held_out_pairs(method: Method) -> UserError:
    """The error for weights that need a third split which the recipe does not have."""
    return UserError(
        f"The setting method.weights is {method.weights!r}, which uses pairs that are held out from both training and evaluation, and "
        "the recipe has none: expected pairs.weights_fraction above 0, such as 0.05 (and pairs.train, from which they are taken). Set "
        "it."
    )


def held_out_weights(pairs: CachedPairs, method: Method) -> ValidationWeights | None:
    """The weights from the third split; None if the method's weights do not depend on it alone.

    Raises:
        UserError: if the method needs the split and the recipe has none.
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
        UserError: for weights that need a third split or a column that the recipe does not have.
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
        chosen_references=chosen_references(method, pairs.names, pairs.frame),
        spans=pair_spans(pairs.frame, pairs.caches) if method.mixes_spans(pairs.names) else None,
    )
    return targets if held_out is None else replace(targets, notices=(*targets.notices, held_out.notice))


def training_examples(pairs: CachedPairs, method: Method) -> tuple[PreferenceExamples, Targets]:
    """The training examples of stage two, and their targets.

    Raises:
        UserError: for weights that need a third split which the recipe does not have, and for rewards that are not numbers.
    """
    targets = pair_targets(pairs, method)
    inputs = targets.loss_inputs()
    frame, anchored = pairs.frame, len(pairs.names) > 0
    judges = _judges(pairs, method) if targets.step_scoped and method.needs_held_out(pairs.names) else None
    if judges is not None and pairs.held_out is not None:
        count = f"{len(judges):,} of the {pairs.held_out.frame.height:,} pairs of the weights split"
        targets = replace(targets, notices=(*targets.notices, f"Thompson sampling evaluates references on {count}."))
    examples = PreferenceExamples(
        pair_ids=frame["pair_id"].to_list(),
        prompt_ids=id_rows(frame["prompt_ids"]),
        chosen_ids=id_rows(frame["chosen_ids"]),
        rejected_ids=id_rows(frame["rejected_ids"]),
        chosen_scored=mask_rows(frame["chosen_scored"]),
        rejected_scored=mask_rows(frame["rejected_scored"]),
        reference_chosen=inputs.reference_chosen,
        reference_rejected=inputs.reference_rejected,
        weights=inputs.weights,
        anchor_chosen=pairs.logps_chosen[:, 0] if anchored else None,
        anchor_rejected=pairs.logps_rejected[:, 0] if anchored else None,
        chosen_bytes=_units(pairs, "chosen", "byte") if anchored else None,
        rejected_bytes=_units(pairs, "rejected", "byte") if anchored else None,
        chosen_units=inputs.chosen_units,
        rejected_units=inputs.rejected_units,
        margins=objective_margins(method, frame, _by_name(pairs, targets)),
        floored_margins=floored_margins(method, pairs.names, targets),
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
    """The pairs of the third split for Thompson sampling: the first by id, which is a hash, so the sample does not depend on file
    or order. Only their policy tokens are used."""
    assert pairs.held_out is not None
    held_out = pairs.held_out
    rows = np.argsort(held_out.frame["pair_id"].to_numpy(), kind="stable")[: method.weights_options.pairs]
    few = CachedPairs(held_out.frame[rows], pairs.names, held_out.logps_chosen[rows], held_out.logps_rejected[rows], {})
    return training_examples(few, Method(name="dpo"))[0]


def id_rows(column: pl.Series) -> IdRows:
    """A list column's values without a copy, also of a memory-mapped file."""
    flat = column.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return IdRows(flat, column.list.len().cast(pl.Int64).to_numpy())


def mask_rows(column: pl.Series) -> MaskRows | None:
    """As :func:`id_rows`, of masks; None where all are null."""
    if column.null_count() == len(column):
        return None
    flat = column.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return MaskRows(flat, column.list.len().fill_null(0).cast(pl.Int64).to_numpy())
