"""Select a metric that training changed, and the width of ties, which covers differences between engines.

After short training of a real model often no pair changes sides: its two sides are tens of nats apart, and training moves them by
less than one. The share of pairs whose chosen side is preferred then stays the same for every method, and a difference of 0 between
methods is not informative. ``accuracy/anchor`` changes from the first step on: it compares each pair's margin with that at the start.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.compare.comparisons import Outcomes
from mrpo_pipeline.compare.methods import Contender
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.evaluation.pair_outcomes import COMPARABLE
from mrpo_pipeline.evaluation.power import POINT

Floats = npt.NDArray[np.float64]

ANCHOR = "accuracy/anchor"
# Nats per token by which two correct computations of one model may differ; a larger difference means different models.
LARGEST_DRIFT = 0.05
# The smallest drift that is assumed, for float32.
SMALLEST_DRIFT = 1e-5
_TIMES = 2.0  # width of a tie, in standard deviations of the drift


def changed(outcomes: Outcomes, metric: str) -> float:
    """The largest share of pairs, over seeds, whose outcome changed in training with one method."""
    start = outcomes.start[metric][:, None]
    return max((float((by[metric] != start).mean()) for by in outcomes.methods.values()), default=0.0)


def with_references(outcomes: Outcomes, contenders: Iterable[Contender]) -> Outcomes:
    """The methods that have a reference, if any: changes without references are not informative about them."""
    names = [one.name for one in contenders if not one.reference_free]
    kept = {name: values for name, values in outcomes.methods.items() if name in names}
    return replace(outcomes, methods=kept or outcomes.methods)


def metric_that_moves(outcomes: Outcomes, requested: str) -> tuple[str, str]:
    """The metric of the verdict, and a note if training changed the requested one too little; empty otherwise.

    Two methods differ by at most the pairs whose outcome either of them changed. If that is less than half a point for every method,
    a difference of one point is impossible.
    """
    share = changed(outcomes, requested)
    if not outcomes.methods or share >= POINT / 2:
        return requested, ""
    count = "none" if share == 0 else f"fewer than {100 * POINT / 2:g}%"
    label = COMPARABLE.get(requested, requested)
    note = f"Training turned {count} of the {len(outcomes.clusters):,} held-out pairs in “{label}”"
    if requested == ANCHOR or ANCHOR not in outcomes.start or changed(outcomes, ANCHOR) < POINT / 2:
        hint = (
            "nor did it move them: these runs cannot tell methods apart. Train longer, or with a higher learning rate."
        )
        return requested, f"{note}, {hint}"
    return ANCHOR, f"{note}, so it cannot tell methods apart. The verdict looks at “{COMPARABLE[ANCHOR]}” instead."


def drift_per_token(chosen: Floats, rejected: Floats, examples: PreferenceExamples) -> float:
    """Root mean square difference per token between the start's log-probs and the cached anchor's, in nats; 0 if the two are different
    models.

    Errors of tokens add up like a random walk: a side of T tokens is off by √T times this.

    Args:
        chosen, rejected: (N,), nats: the start's log-probs of completions.
    """
    off = np.concatenate([chosen - examples.anchor[0], rejected - examples.anchor[1]])
    tokens = np.concatenate([examples.chosen_counts, examples.rejected_counts])
    if not len(off):
        return 0.0
    found = float(np.sqrt(np.mean(np.square(off) / np.maximum(tokens, 1))))
    by_token = float(np.mean(np.abs(off) / np.maximum(tokens, 1)))
    return max(found, SMALLEST_DRIFT) if by_token <= LARGEST_DRIFT else 0.0


def ties_within(drift: float, examples: PreferenceExamples) -> Floats:
    """(N,) nats: a difference between the two sides of a pair that drift explains."""
    tokens = (examples.chosen_counts + examples.rejected_counts).astype(np.float64)
    result: Floats = _TIMES * drift * np.sqrt(tokens)
    return result
