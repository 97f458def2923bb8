"""Which side of every held-out pair a policy prefers, by the metrics that are comparable across methods."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.dataset.examples import PreferenceExamples

Floats = npt.NDArray[np.float64]

COMPARABLE = {
    "accuracy/policy": "prefers the chosen side (sums of log-probs)",
    "accuracy/policy_per_token": "prefers the chosen side (log-probs per token)",
    "accuracy/anchor": "moved towards the chosen side, against the anchor",
}


def pair_outcomes(
    chosen: Floats, rejected: Floats, examples: PreferenceExamples, *, ties: Floats | None = None
) -> dict[str, Floats]:
    """(N,) by metric of ``COMPARABLE``: 1 for the chosen side, 0 for the rejected one, ½ for a tie.

    Args:
        chosen, rejected: (N,), nats, the policy's sums of every pair, in the order of ``examples``.
        ties: (N,), nats within which the policy's and the anchor's margins count as equal: what the engines that computed them
            may differ by. None for rounding alone.
    """
    import torch

    from mrpo_pipeline.policy.metrics import TIE, wins

    size = np.abs(chosen) + np.abs(rejected)
    per_token = chosen / examples.chosen_counts, rejected / examples.rejected_counts
    ahead = {
        "accuracy/policy": (chosen - rejected, size),
        "accuracy/policy_per_token": (per_token[0] - per_token[1], np.abs(per_token[0]) + np.abs(per_token[1])),
        "accuracy/anchor": (chosen - examples.anchor[0] - (rejected - examples.anchor[1]), size),
    }
    equal = {metric: TIE * scale for metric, (_, scale) in ahead.items()}
    if ties is not None:
        equal["accuracy/anchor"] = np.maximum(equal["accuracy/anchor"], ties)
    return {
        metric: wins(torch.from_numpy(difference), torch.from_numpy(equal[metric])).numpy()
        for metric, (difference, _) in ahead.items()
    }
