"""Compare every method with every single reference and with the start: intervals and corrected p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.compare.methods import START, Contender
from mrpo_pipeline.evaluation.intervals import Known, mean_known
from mrpo_pipeline.evaluation.multiple_testing import ALPHA, holm
from mrpo_pipeline.evaluation.power import pairs_needed

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """The policies' outcomes on every held-out pair.

    Attributes:
        clusters: (N,), the prompt's number of each pair.
        start: (N,) by metric: 1, ½ or 0 for each pair. methods: (N, S) by method and metric, seeds in order.
    """

    clusters: npt.NDArray[np.int64]
    start: Mapping[str, Floats]
    methods: Mapping[str, Mapping[str, Floats]]


@dataclass(frozen=True)
class Compared:
    """``method`` minus ``against`` in one metric, as a share: 0.01 is one point.

    ``question`` names the family of comparisons within which p is corrected; ``family`` is their number.
    """

    metric: str
    method: str
    against: str
    question: str
    known: Known
    p_corrected: float = 1.0
    family: int = 1

    @property
    def better(self) -> bool:
        return self.p_corrected < ALPHA and self.known.mean > 0

    @property
    def worse(self) -> bool:
        return self.p_corrected < ALPHA and self.known.mean < 0

    @property
    def alpha(self) -> float:
        """The threshold below which p is significant whatever the other p-values of its family: Holm's first step."""
        return ALPHA / self.family

    def as_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "method": self.method,
            "against": self.against,
            "difference": self.known.mean,
            "low": self.known.low,
            "high": self.known.high,
            "p": self.known.p,
            "p_corrected": self.p_corrected,
            "sd_pairs": self.known.sd_pairs,
            "sd_seeds": self.known.sd_seeds,
            "pairs_needed": pairs_needed(self.known, alpha=self.alpha),
            "freedom": self.known.freedom,
            "question": self.question,
        }


# The questions of a comparison. Each is corrected separately.
SEVERAL = "do several references do better than one"
ONE = "which single reference is better"
TRAINING = "is it better than the start"
LEFT_OUT = "does a reference do harm"
FREE = "is it better than training without a reference"
SELECTED = "do the selected pairs do better than all"


def compare_outcomes(contenders: Sequence[Contender], outcomes: Outcomes) -> list[Compared]:
    """Every comparison of every metric.

    Each metric and question is a family of its own, corrected by Holm's method: methods with several references against
    each single one; single references against each other; all against the start; a method against itself without one
    of its references, and on selected pairs against all; and all that have references against those that have none.
    """
    trained = [one for one in contenders if one.name in outcomes.methods]
    singles = [one for one in trained if one.baseline]
    free = [one for one in trained if one.reference_free]
    several = [one for one in trained if one.several]
    to_compare = [(a.name, b.name, SEVERAL) for a in several if a.without is None for b in singles]
    to_compare += [(a.name, b.name, ONE) for i, a in enumerate(singles) for b in singles[:i]]
    for one in several:
        if one.without is not None:
            whole = next((x.name for x in several if x.without is None and x.reads() == one.reads()), None)
            to_compare += [(one.name, whole, LEFT_OUT)] if whole else []
    to_compare += [(one.name, START, TRAINING) for one in trained]
    to_compare += [(one.name, one.whole, SELECTED) for one in trained if one.whole and one.whole in outcomes.methods]
    to_compare += [(a.name, b.name, FREE) for a in (*several, *singles) if a.without is None for b in free]
    found: list[Compared] = []
    for metric in outcomes.start:
        family = [
            Compared(metric, method, against, question, _difference(outcomes, metric, method, against))
            for method, against, question in to_compare
        ]
        for question in dict.fromkeys(one.question for one in family):
            own = [one for one in family if one.question == question]
            corrected = holm([one.known.p for one in own])
            found += [replace(one, p_corrected=p, family=len(own)) for one, p in zip(own, corrected, strict=True)]
    return found


def _difference(outcomes: Outcomes, metric: str, method: str, against: str) -> Known:
    """The difference paired by pair and seed: methods with the same seed share initialization and batches."""
    ours = outcomes.methods[method][metric]
    theirs = outcomes.start[metric][:, None] if against == START else outcomes.methods[against][metric]
    return mean_known(ours - theirs, outcomes.clusters)


def shares(outcomes: Outcomes) -> dict[str, dict[str, Known]]:
    """The share of each method and metric, with its interval clipped to 0 and 1."""
    found: dict[str, dict[str, Known]] = {}
    for name, by_metric in outcomes.methods.items():
        found[name] = {}
        for metric, values in by_metric.items():
            known = mean_known(values, outcomes.clusters)
            found[name][metric] = replace(known, low=max(known.low, 0.0), high=min(known.high, 1.0))
    return found
