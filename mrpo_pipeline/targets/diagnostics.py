"""Diagnostics of the references on a set of pairs: which one decides, and the effect of clipping.

Sums of completions differ by tens of nats, so the weights alone do not show which reference decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrpo_pipeline.targets.aggregate import Floats, influence
from mrpo_pipeline.targets.spans import SpanCounts

# Sums of float32 log-probs that differ by less are ties: relative to the sum, and in nats.
TIE_RELATIVE = 1e-7
TIE_ABSOLUTE = 1e-6


def diagnose(
    names: Sequence[str],
    *,
    logps: tuple[Floats, Floats],
    clipped: tuple[Floats, Floats],
    weights: Floats,
    aggregate: str,
    aggregate_weights: Floats,
    spans: SpanCounts | None = None,
) -> dict[str, float]:
    """Means over the pairs, by metric name; empty without pairs.

    ``refs/effective_k``: the mean of 1/Σ_k ρ_k² over all completions, ρ_k = ∂ log π̃ / ∂ ℓ_k (for ``harmonic``,
    softmax_k(log α_k − ℓ_k)): 1 if one reference decides, K if all have equal influence. With ``spans`` this and the argmin share
    are means over all spans of all completions. And for each reference:

    - ``refs/NAME/weight``: mean α.
    - ``refs/NAME/argmin_share``: share of the completions on which its clipped ℓ is the smallest; ties are shared.
    - ``refs/NAME/clip_rate``: share of the completions whose ℓ the trust region changed.
    - ``refs/NAME/sign_flips``: share of the pairs whose Δ has the other sign after clipping.
    - ``refs/NAME/accuracy``: share of the pairs with Δ > 0, unclipped; a tie counts one half.
    - ``refs/NAME/ties``: share of the pairs with Δ = 0, within rounding.

    Args:
        names: K reference names.
        logps, clipped: (chosen, rejected), each (N, K), before and after the trust region.
        weights: α (N, K), as reported.
        aggregate: the aggregate, for ρ.
        aggregate_weights: α (N, K) as passed to the aggregate.
        spans: counts over spans, if references are mixed span by span.
    """
    if len(weights) == 0:
        return {}
    both = np.concatenate(clipped)  # (2N, K): every completion
    if spans is None:
        smallest = both == both.min(axis=1, keepdims=True)
        argmin_share = (smallest / smallest.sum(axis=1, keepdims=True)).mean(axis=0)
        rho = influence(aggregate, both, np.concatenate([aggregate_weights, aggregate_weights]))
        effective = float((1 / np.square(rho).sum(axis=1)).mean())
    else:
        argmin_share, effective = spans.smallest / spans.spans, spans.effective / spans.spans
    margins = logps[0] - logps[1]
    clipped_margins = clipped[0] - clipped[1]
    ties = np.isclose(logps[0], logps[1], rtol=TIE_RELATIVE, atol=TIE_ABSOLUTE)
    columns = {
        "weight": weights.mean(axis=0),
        "argmin_share": argmin_share,
        "clip_rate": (both != np.concatenate(logps)).mean(axis=0),
        "sign_flips": (np.sign(margins) * np.sign(clipped_margins) < 0).mean(axis=0),
        "accuracy": np.where(ties, 0.5, margins > 0).mean(axis=0),
        "ties": ties.mean(axis=0),
    }
    report = {"refs/effective_k": effective}
    for position, name in enumerate(names):
        report.update({f"refs/{name}/{key}": float(values[position]) for key, values in columns.items()})
    return report
