"""Weights from a third, held-out split, computed once for the run: validation discrimination and validation accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.targets import weights
from mrpo_pipeline.targets.aggregate import Floats
from mrpo_pipeline.targets.compute import finished, normalized
from mrpo_pipeline.targets.settings import TargetSettings

# What each is proportional to, over the pairs of the split.
_SCORES = {"validation-discrimination": weights.discrimination, "validation-accuracy": weights.accuracy}
_NAMED = {
    "validation-discrimination": "the sum of |ℓ(chosen) − ℓ(rejected)|",
    "validation-accuracy": "the number of pairs ranked rightly",
}


@dataclass(frozen=True, slots=True)
class ValidationWeights:
    """One row of weights for every pair of the run."""

    row: Floats
    """(K,), before temperature and floor."""
    pairs: int
    """M: how many held-out pairs it rests on."""
    notice: str
    """A sentence for the user: what each reference got, and from how many pairs."""


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

    On the unclipped log-probs, in the unit of ``normalize``. Where no pair gives a signal (every Δ is 0; no pair ranked
    rightly by any reference), uniform, and the notice says so.

    Args:
        logps_chosen, logps_rejected: (M, K), nats, of the *held-out* pairs; the rest as in ``compute_targets``.

    Raises:
        ValueError: for shapes that do not fit, or no pair.
        RunError: for log-probs that are not finite, naming the reference.
    """
    chosen, rejected, _ = normalized(
        logps_chosen, logps_rejected, method, names, units_chosen=units_chosen, units_rejected=units_rejected
    )
    if not len(chosen):
        raise ValueError("no held-out pair: expected one at least")
    kind = str(method.weights)
    row = _SCORES[kind](chosen - rejected)
    shares = ", ".join(
        f"{name} {share:.4g}" for name, share in zip(names, finished(row[None], method.weights_options)[0], strict=True)
    )
    rests = f"the {len(chosen):,} pairs of the weights split"
    if not _signal(kind, chosen - rejected):
        notice = (
            f"Weights by {kind}: {_NAMED[kind]} is 0 for every reference on {rests}, so they are uniform: {shares}."
        )
    else:
        notice = f"Weights by {kind}, from {rests}: {shares}."
    return ValidationWeights(row, len(chosen), notice)


def _signal(kind: str, margins: Floats) -> bool:
    return bool(np.any(margins > 0) if kind == "validation-accuracy" else np.any(margins != 0))
