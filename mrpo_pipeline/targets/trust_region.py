"""The clipped trust region (CTRO) of arXiv 2405.16388, which keeps references near the anchor.

A reference far from the policy's starting point would decide the target on its own. So every reference but the anchor
(column 0) is clipped to a band around the anchor before aggregation. The widths are those of the authors' code.
"""

from __future__ import annotations

import numpy as np

from mrpo_pipeline.targets.aggregate import Floats


def clip_to_anchor(logps_chosen: Floats, logps_rejected: Floats, kind: str, epsilon: float) -> tuple[Floats, Floats]:
    """Clip every reference except the anchor to its band, on both sides of each pair.

    Args:
        logps_chosen, logps_rejected: (N, K), nats; the anchor is column 0.
        kind: ``adaptive`` | ``fixed`` | ``off``.
        epsilon: ε_max of ``adaptive``, ε of ``fixed``.

    Returns:
        the clipped (N, K) arrays; column 0 is unchanged.
    """
    if kind == "off":
        return logps_chosen, logps_rejected
    epsilon_chosen, epsilon_rejected = band_widths(logps_chosen, logps_rejected, kind, epsilon)
    return _clip(logps_chosen, epsilon_chosen), _clip(logps_rejected, epsilon_rejected)


def band_widths(logps_chosen: Floats, logps_rejected: Floats, kind: str, epsilon: float) -> tuple[Floats, Floats]:
    """The relative half widths ε_w and ε_l of the bands, each (N,).

    ``fixed``: ε on both sides. ``adaptive``: with b_y the mean over all references of the unclipped ℓ(y),
    ε_w = ε_max·|b_w| / (|b_w| + |b_l|) and ε_l = ε_max − ε_w, so the less likely side has the wider band. The authors'
    code has K = 2; that b_y runs over all K references is this project's reading.
    """
    if kind == "fixed":
        width = np.full(len(logps_chosen), epsilon)
        return width, width
    size_chosen = np.abs(logps_chosen.mean(axis=1))
    size = size_chosen + np.abs(logps_rejected.mean(axis=1))
    share = np.divide(size_chosen, size, out=np.full_like(size, 0.5), where=size > 0)
    return epsilon * share, epsilon * (1 - share)


def _clip(logps: Floats, epsilon: Floats) -> Floats:
    anchor = logps[:, :1]  # (N, 1)
    # Log-probs are negative, so (1 + ε)·anchor is the lower bound.
    clipped = np.clip(logps, (1 + epsilon[:, None]) * anchor, (1 - epsilon[:, None]) * anchor)
    clipped[:, 0] = logps[:, 0]  # rounding to float32 may give a certain completion +1e-7, which swaps the bounds
    return clipped
