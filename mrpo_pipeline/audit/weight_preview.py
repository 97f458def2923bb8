"""The weights of the references under each weighting, and their role in the harmonic mean after clipping."""

from __future__ import annotations

from typing import Any

import numpy as np

from mrpo_pipeline.audit.reference_metrics import Scored
from mrpo_pipeline.audit.sampled_tokens import Floats
from mrpo_pipeline.targets import weights as weightings
from mrpo_pipeline.targets.compute import compute_targets
from mrpo_pipeline.targets.settings import TargetSettings

HELD_OUT = "the weights split"
THESE = "these pairs (the recipe has no weights split)"


def weights_by(scored: Scored, held_out: Floats | None) -> dict[str, Any]:
    """Mean α of each reference under each weighting that depends on the pairs only; on sums, temperature 1, no floor.

    Args:
        scored: the pairs.
        held_out: Δ (M, K) of the weights split, for VDW and VAW; None: of these pairs.
    """
    margins = scored.margins
    other = margins if held_out is None else held_out
    found = {
        "uniform": weightings.uniform(1, len(scored.names))[0],
        "adaptive": weightings.adaptive(margins).mean(axis=0),
        "validation-discrimination": weightings.discrimination(other),
        "validation-accuracy": weightings.accuracy(other),
    }
    return {
        "weights": {kind: _named(scored.names, row) for kind, row in found.items()},
        "validation_on": THESE if held_out is None else HELD_OUT,
        "held_out_pairs": len(other),
    }


def under_mrpo(scored: Scored, mrpo: TargetSettings, units: tuple[Floats, Floats] | None) -> dict[str, Any]:
    """Argmin share, effective K, clip rate and sign flips under MRPO: harmonic mean, adaptive weights, and the recipe's trust region
    (adaptive where it is off).

    Args:
        scored: the pairs.
        mrpo: harmonic and adaptive, with the recipe's trust region and unit.
        units: (N,) divisor of each side's log-probs, with ``normalize`` token or byte.

    Returns:
        ``settings``, ``effective_k`` and ``references``: NAME → ``argmin_share``, ``clip_rate``, ``sign_flips``.
    """
    targets = compute_targets(
        scored.chosen,
        scored.rejected,
        mrpo,
        scored.names,
        units_chosen=None if units is None else units[0],
        units_rejected=None if units is None else units[1],
    )
    found = targets.diagnostics
    shown = ("argmin_share", "clip_rate", "sign_flips")
    return {
        "settings": {
            "aggregate": mrpo.aggregate,
            "weights": mrpo.weights,
            "trust_region": mrpo.trust_region.kind,
            "epsilon": mrpo.trust_region.epsilon,
            "normalize": mrpo.normalize,
        },
        "effective_k": found["refs/effective_k"],
        "references": {name: {key: found[f"refs/{name}/{key}"] for key in shown} for name in scored.names},
    }


def _named(names: list[str], row: Floats) -> dict[str, float]:
    return dict(zip(names, np.asarray(row, dtype=float).tolist(), strict=True))
