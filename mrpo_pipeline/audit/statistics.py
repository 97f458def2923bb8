"""Scale-free statistics: ranks, rank correlations, variance explained by groups, permutation tests."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.audit.sampled_tokens import Bools, Floats, Ints

NAN = float("nan")
# Values that a permutation test uses at most.
MAX_VALUES = 60_000
Values = npt.NDArray[np.generic]


def ranks(values: Values) -> Floats:
    """(N,) ranks from 0; ties share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    result: Floats = (last - (counts + 1) / 2)[inverse]
    return result


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's; NaN for fewer than 3 values or a constant."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return NAN
    return float(np.corrcoef(a, b)[0, 1])


def rank_correlation(a: Values, b: Values) -> float:
    """Spearman's; NaN as in :func:`correlation`."""
    return correlation(ranks(a), ranks(b))


def demeaned(values: Floats, groups: Ints) -> Floats:
    """(N,) values minus the mean of their group."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=values) / counts
    result: Floats = values - means[inverse]
    return result


def share_explained(values: Floats, groups: Ints) -> float:
    """The share of the variance between groups (η²), 0 to 1; NaN for a constant."""
    total = float(np.square(values - values.mean()).sum())
    if total <= 0:
        return NAN
    return 1 - float(np.square(demeaned(values, groups)).sum()) / total


def entropy(kinds: Values) -> float:
    """Entropy of the kinds' frequencies in nats, with the Miller–Madow correction."""
    _, counts = np.unique(kinds, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * counts.sum()))


def auc_within(values: Values, marked: Bools, groups: Ints) -> float:
    """The area under the ROC curve within groups: how often a marked value exceeds an unmarked one of its group.

    Returns:
        0.5 without a relation; NaN where fewer than 5 on a side can be compared.
    """
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
    return wins / comparisons if min(ones, others) >= 5 else NAN


def clustered_error(values: Floats, clusters: Ints) -> float:
    """The standard error of the mean with values correlated in clusters; NaN for fewer than two clusters."""
    _, inverse = np.unique(clusters, return_inverse=True)
    groups = int(inverse.max(initial=-1)) + 1
    if groups < 2:
        return NAN
    sums = np.bincount(inverse, weights=values - values.mean())
    return math.sqrt(float(np.square(sums).sum()) * groups / (groups - 1)) / len(values)


def effective_count(kinds: Values) -> float:
    """The effective number of kinds: 1 over the probability that two draws are equal; NaN for none."""
    _, counts = np.unique(kinds, return_counts=True)
    return float(counts.sum() ** 2 / np.square(counts).sum()) if len(counts) else NAN


def auc_error(ones: float, others: float) -> float:
    """The standard error of :func:`auc_within` without a relation; not corrected for ties."""
    return math.sqrt((ones + others + 1) / (12 * ones * others)) if ones > 0 and others > 0 else math.inf


def permutation_z(
    values: Floats, groups: Ints, within: Ints, *, at_least: int = 30, seed: int = 0, shuffles: int = 20
) -> float:
    """Permutation test: how far the variance that ``groups`` explain of the ranks exceeds that of shuffled values, in standard deviations
    of the shuffles.

    Values are shuffled among those of the same ``within``; a value alone in it is left out. For values that were already shuffled
    so, the result is standard normal.

    Returns:
        NaN with fewer than ``at_least`` values to shuffle; of many, the first ``MAX_VALUES`` are used.
    """
    values, groups, within = values[:MAX_VALUES], groups[:MAX_VALUES], within[:MAX_VALUES]
    order = np.argsort(within, kind="stable")
    _, inverse, counts = np.unique(within[order], return_inverse=True, return_counts=True)
    order = order[counts[inverse] > 1]
    if len(order) < at_least:
        return NAN
    strata, kept, kinds = within[order], ranks(values[order]), groups[order]
    seen = share_explained(kept, kinds)
    rng = np.random.default_rng(seed)
    drawn = [
        share_explained(kept[np.lexsort((rng.random(len(kept)), strata))], kinds) for _ in range(shuffles)
    ]  # strata are sorted: each draw permutes within them
    spread = float(np.std(drawn, ddof=1))
    if math.isnan(seen) or spread == 0:
        return NAN
    return (seen - float(np.mean(drawn))) / spread
