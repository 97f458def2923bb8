"""Weights computed once per run from the third split: validation discrimination (VDW) and validation accuracy (VAW)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.targets import weights
from mrpo_pipeline.targets.aggregate import Floats
from mrpo_pipeline.targets.compute import normalized, temper_and_lift
from mrpo_pipeline.targets.settings import TargetSettings

# The statistic over the pairs of the split that each is proportional to, and how a notice names it.
_SCORES = {"validation-discrimination": weights.discrimination, "validation-accuracy": weights.accuracy}
_NAMED = {
    "validation-discrimination": "the sum of |ℓ(chosen) − ℓ(rejected)|",
    "validation-accuracy": "the number of pairs ranked rightly",
}


@dataclass(frozen=True, slots=True)
class ValidationWeights:
    """One row of weights, for every pair of the run."""

    row: Floats
    """(K,), before temperature and floor."""
    pairs: int
    """M: the number of held-out pairs."""
    notice: str
    """A sentence for the user: each reference's weight, and the number of pairs."""


def validation_weights(
    logps_chosen: npt.ArrayLike,
    logps_rejected: npt.ArrayLike,
    method: TargetSettings,
    names: Sequence[str],
    *,
    units_chosen: npt.ArrayLike | None = None,
    units_rejected: npt.ArrayLike | None = None,
) -> ValidationWeights:
    """VDW or VAW (arXiv 2512.10040) from the M pairs of the weights split.

    Computed from unclipped log-probs in the unit of ``normalize``. Without a signal (every Δ is 0, or for VAW no pair ranked
    rightly by any reference) weights are uniform, which the notice reports.

    Args:
        logps_chosen, logps_rejected: (M, K), nats, of the *held-out* pairs; the rest as in ``compute_targets``.

    Raises:
        ValueError: for shapes that do not match, or without pairs.
        RunError: for log-probs that are not finite, naming the reference.
    """
    chosen, rejected, _ = normalized(
        logps_chosen, logps_rejected, method, names, units_chosen=units_chosen, units_rejected=units_rejected
    )
    if not len(chosen):
        raise ValueError("no held-out pair: expected at least one")
    kind = str(method.weights)
    row = _SCORES[kind](chosen - rejected)
    shares = ", ".join(
        f"{name} {share:.4g}"
        for name, share in zip(names, temper_and_lift(row[None], method.weights_options)[0], strict=True)
    )
    pairs = f"the {len(chosen):,} pairs of the weights split"
    if not _signal(kind, chosen - rejected):
        notice = (
            f"Weights by {kind}: {_NAMED[kind]} is 0 for every reference on {pairs}, so they are uniform: {shares}."
        )
    else:
        notice = f"Weights by {kind}, from {pairs}: {shares}."
    return ValidationWeights(row, len(chosen), notice)


def _signal(kind: str, margins: Floats) -> bool:
    return bool(np.any(margins > 0) if kind == "validation-accuracy" else np.any(margins != 0))
