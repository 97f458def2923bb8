"""Statistics that hold on any scale: ranks, correlations of ranks, what is left when groups' means are taken away."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.audit.sample import Bools, Floats, Ints

NONE = float("nan")
# Values that are dealt out anew, at most.
MOST = 60_000
Values = npt.NDArray[np.generic]


def ranks(values: Values) -> Floats:
    """(N,) ranks from 0; ties share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    result: Floats = (last - (counts + 1) / 2)[inverse]
    return result


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's; NaN where one of the two does not vary, or of fewer than 3 values."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return NONE
    return float(np.corrcoef(a, b)[0, 1])


def rank_correlation(a: Values, b: Values) -> float:
    """Spearman's; NaN as in :func:`correlation`."""
    return correlation(ranks(a), ranks(b))


def without_means(values: Floats, groups: Ints) -> tuple[Floats, Ints]:
    """(N,) values less the mean of their group, and (N,) the sizes of the groups."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=values) / counts
    return values - means[inverse], counts[inverse]


def share_explained(values: Floats, groups: Ints) -> float:
    """The share of the variance that lies between groups (η²), 0 to 1; NaN where nothing varies."""
    total = float(np.square(values - values.mean()).sum())
    if total <= 0:
        return NONE
    rest, _ = without_means(values, groups)
    return 1 - float(np.square(rest).sum()) / total


def entropy(kinds: Values) -> float:
    """Nats of the kinds' frequencies, corrected for their number (Miller and Madow)."""
    _, counts = np.unique(kinds, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * counts.sum()))


def larger_within(values: Values, marked: Bools, groups: Ints) -> float:
    """How often a marked value is larger than an unmarked one of its group (the area under the ROC curve): 0.5 where the mark says
    nothing of the value; NaN where fewer than 5 on a side have anything to compare with."""
    wins = comparisons = 0.0
    ones = others = 0
    for group in np.unique(groups):
        inside = groups == group
        mine = int(marked[inside].sum())
        rest = int(inside.sum()) - mine
        if mine and rest:
            wins += float(ranks(values[inside])[marked[inside]].sum() - mine * (mine - 1) / 2)
            comparisons += mine * rest
            ones, others = ones + mine, others + rest
    return wins / comparisons if min(ones, others) >= 5 else NONE


def mean_error(values: Floats, clusters: Ints) -> float:
    """The standard error of the mean where values of one cluster are alike; NaN of fewer than two clusters."""
    _, inverse = np.unique(clusters, return_inverse=True)
    groups = int(inverse.max(initial=-1)) + 1
    if groups < 2:
        return NONE
    sums = np.bincount(inverse, weights=values - values.mean())
    return math.sqrt(float(np.square(sums).sum()) * groups / (groups - 1)) / len(values)


def effective_kinds(kinds: Values) -> float:
    """How many equally frequent kinds would be as varied: 1 over the chance that two draws are alike; NaN of none."""
    _, counts = np.unique(kinds, return_counts=True)
    return float(counts.sum() ** 2 / np.square(counts).sum()) if len(counts) else NONE


def area_error(ones: float, others: float) -> float:
    """The standard error of :func:`larger_within` where the mark says nothing of the value; ties are not corrected for."""
    return math.sqrt((ones + others + 1) / (12 * ones * others)) if ones > 0 and others > 0 else math.inf


def surprise_against_shuffles(
    values: Floats, groups: Ints, within: Ints, *, at_least: int = 30, seed: int = 0, shuffles: int = 20
) -> float:
    """How far what ``groups`` explain of ``values`` lies above what they explain once values are shuffled, in standard
    deviations of the shuffles.

    Values are shuffled only among those of the same ``within``; those that stand alone in it are left out. Values that were
    shuffled so already give a number like any draw from the standard normal.

    Returns:
        NaN with fewer than ``at_least`` values to shuffle; the first ``MOST`` are taken of many.
    """
    values, groups, within = values[:MOST], groups[:MOST], within[:MOST]
    order = np.argsort(within, kind="stable")
    _, inverse, counts = np.unique(within[order], return_inverse=True, return_counts=True)
    order = order[counts[inverse] > 1]
    if len(order) < at_least:
        return NONE
    strata, kept, kinds = within[order], ranks(values[order]), groups[order]
    seen = share_explained(kept, kinds)
    rng = np.random.default_rng(seed)
    drawn = [
        share_explained(kept[np.lexsort((rng.random(len(kept)), strata))], kinds) for _ in range(shuffles)
    ]  # strata are sorted, so that each draw permutes within them
    spread = float(np.std(drawn, ddof=1))
    if math.isnan(seen) or spread == 0:
        return NONE
    return (seen - float(np.mean(drawn))) / spread
