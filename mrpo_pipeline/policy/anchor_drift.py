"""How far a policy has moved from the anchor on held-out completions, reported beside the accuracies.

Drift is the mean over completions of (ℓ_θ(y) − ℓ_1(y)) / |y|, for chosen and rejected sides separately. It is not KL(π_θ‖π_1),
which averages over the policy's own completions. On completions sampled from the anchor it estimates −KL(π_1‖π_θ). It is
negative if the policy finds the completions less likely than the anchor does; opposite shifts cancel within a side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.dataset.examples import PreferenceExamples

Floats = npt.NDArray[np.float64]

DRIFT = {
    "drift/chosen_per_token": "drift from the anchor on chosen sides, nats a token",
    "drift/rejected_per_token": "drift from the anchor on rejected sides, nats a token",
    "drift/chosen_per_byte": "drift from the anchor on chosen sides, nats a byte",
    "drift/rejected_per_byte": "drift from the anchor on rejected sides, nats a byte",
}


def anchor_drift(chosen: Floats, rejected: Floats, examples: PreferenceExamples) -> dict[str, float]:
    """The metrics of ``DRIFT``, means over N pairs; empty without the anchor's sums. See ``pair_drift``."""
    return {name: float(np.mean(values)) for name, values in pair_drift(chosen, rejected, examples).items()}


def pair_drift(chosen: Floats, rejected: Floats, examples: PreferenceExamples) -> dict[str, Floats]:
    """The metrics of ``DRIFT`` of each pair, (N,); empty without pairs or the anchor's sums.

    Args:
        chosen, rejected: (N,), nats, the policy's sums. They are divided by the policy's tokens, and by the bytes of the cut text.
    """
    if examples.anchor_chosen is None or examples.anchor_rejected is None or not len(examples):
        return {}
    moved = {"chosen": chosen - examples.anchor_chosen, "rejected": rejected - examples.anchor_rejected}
    sizes = {
        "chosen_per_token": examples.chosen_counts,
        "rejected_per_token": examples.rejected_counts,
        "chosen_per_byte": examples.chosen_bytes,
        "rejected_per_byte": examples.rejected_bytes,
    }
    return {f"drift/{name}": moved[name.split("_")[0]] / size for name, size in sizes.items() if size is not None}
