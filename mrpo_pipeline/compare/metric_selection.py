"""Select a metric that training changed, and set ties that cover the differences between engines.

After short training of a real model no pair changes sides: its two sides are tens of nats apart, and training moves them by less
than one. The share of pairs whose chosen side is preferred then stays the same for every method, and a difference of 0 between methods
is not informative. ``accuracy/anchor`` changes with the first step: it compares each pair's margin with its margin at the start.
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
# Nats a token by which two right computations differ, root mean square: more is another model and no drift.
LARGEST_DRIFT = 0.05
# The least that is taken for drift, in float32.
SMALLEST_DRIFT = 1e-5
_TIMES = 2.0  # a tie within so many standard deviations of the drift


def changed(outcomes: Outcomes, metric: str) -> float:
    """The largest share of pairs, over seeds, whose outcome changed in training with one method."""
    start = outcomes.start[metric][:, None]
    return max((float((by[metric] != start).mean()) for by in outcomes.methods.values()), default=0.0)


def with_references(outcomes: Outcomes, contenders: Iterable[Contender]) -> Outcomes:
    """The methods that have a reference, if any: changes without references are not informative about them."""
    names = [one.name for one in contenders if not one.reference_free]
    kept = {name: values for name, values in outcomes.methods.items() if name in names}
    return replace(outcomes, methods=kept or outcomes.methods)


def metric_that_moves(outcomes: Outcomes, asked: str) -> tuple[str, str]:
    """The metric of the verdict, and why where it is not the one asked for; empty otherwise.

    Two methods cannot differ by more than the pairs that each of them turned: where that is less than half a point for every method,
    no difference of one point can be there.
    """
    share = changed(outcomes, asked)
    if not outcomes.methods or share >= POINT / 2:
        return asked, ""
    pairs = len(outcomes.clusters)
    label = COMPARABLE.get(asked, asked)
    said = f"Training turned {'none' if share == 0 else f'fewer than {100 * POINT / 2:g}%'} of the {pairs:,} held-out pairs in “{label}”"
    if asked == ANCHOR or ANCHOR not in outcomes.start or changed(outcomes, ANCHOR) < POINT / 2:
        return (
            asked,
            f"{said}, nor did it move them: the methods are not told apart by these runs. Train longer, or at a higher rate.",
        )
    return ANCHOR, f"{said}, so it cannot tell methods apart. The verdict looks at “{COMPARABLE[ANCHOR]}” instead."


def drift_per_token(chosen: Floats, rejected: Floats, examples: PreferenceExamples) -> float:
    """Nats by which the start's log-prob of a token differs from the cached anchor's, root mean square; 0 where the two are different
    models.

    Errors of single tokens add up like a random walk: a side of T tokens is off by the square root of T times this.

    Args:
        chosen, rejected: (N,), nats, the start's sums.
    """
    off = np.concatenate([chosen - examples.anchor[0], rejected - examples.anchor[1]])
    tokens = np.concatenate([examples.chosen_counts, examples.rejected_counts])
    if not len(off):
        return 0.0
    found = float(np.sqrt(np.mean(np.square(off) / np.maximum(tokens, 1))))
    by_token = float(np.mean(np.abs(off) / np.maximum(tokens, 1)))
    return max(found, SMALLEST_DRIFT) if by_token <= LARGEST_DRIFT else 0.0


def ties_within(drift: float, examples: PreferenceExamples) -> Floats:
    """(N,) nats between the two sides of a pair that may be drift."""
    tokens = (examples.chosen_counts + examples.rejected_counts).astype(np.float64)
    result: Floats = _TIMES * drift * np.sqrt(tokens)
    return result
