"""The number of further held-out pairs, or of seeds, needed to show a difference of one point."""

from __future__ import annotations

from mrpo_pipeline.evaluation.intervals import Known, seed_freedom
from mrpo_pipeline.evaluation.multiple_testing import ALPHA

POINT = 0.01
POWER = 0.8
MOST_PAIRS = 1 << 34
MOST_SEEDS = 100


def pairs_needed(
    known: Known, *, difference: float = POINT, alpha: float = ALPHA, power: float = POWER, seeds: int | None = None
) -> int | None:
    """Number of additional held-out pairs with which a true difference would be claimed with the given power.

    Uses the estimated variance components and the present number of pairs per prompt.

    Args:
        alpha: two-sided p below which it is claimed: a share of ``ALPHA`` if it is corrected for many comparisons.
        seeds: number of seeds that would be trained; None: the present number.

    Returns:
        0 if there are enough already; None if no number of pairs suffices, because seeds differ too much, and with one seed,
        from which nothing can be claimed.
    """
    if known.seed_variance is None:
        return None
    seeds = seeds or known.seeds
    if not _enough(known, MOST_PAIRS, seeds, difference, alpha, power):
        return None
    few, many = 0, known.pairs
    while not _enough(known, many, seeds, difference, alpha, power):
        few, many = many, 2 * many
    while many - few > max(1, many // 1000):
        middle = (few + many) // 2
        few, many = (few, middle) if _enough(known, middle, seeds, difference, alpha, power) else (middle, many)
    return max(0, many - known.pairs)


def seeds_needed(
    known: Known,
    *,
    difference: float = POINT,
    alpha: float = ALPHA,
    power: float = POWER,
    pairs: int | None = None,
) -> int | None:
    """Smallest sufficient number of seeds with so many pairs (None: unlimited); None if ``MOST_SEEDS`` do not suffice, or with one
    seed, from which nothing can be claimed."""
    if known.seed_variance is None:
        return None
    count = MOST_PAIRS if pairs is None else pairs
    fit = (seeds for seeds in range(2, MOST_SEEDS + 1) if _enough(known, count, seeds, difference, alpha, power))
    return next(fit, None)


def _enough(known: Known, pairs: int, seeds: int, difference: float, alpha: float, power: float) -> bool:
    from scipy import special

    fewer = known.pairs / pairs
    rest = known.rest_variance * fewer * known.seeds / seeds
    from_seeds = (known.seed_variance or 0.0) * known.seeds / seeds + rest
    variance = known.pair_variance * fewer + from_seeds
    freedom = min(seed_freedom(from_seeds / variance, seeds - 1), 1e9)
    reach = special.stdtrit(freedom, 1 - alpha / 2) + special.stdtrit(freedom, power)
    return bool(reach**2 * variance <= difference**2)
