"""Confidence intervals of means over held-out pairs and seeds: crossed variance components and Student's t.

Every seed of a method is evaluated on the same pairs, so the value d_ij of pair i and seed j is modelled as

    d_ij = μ + p_i + s_j + e_ij

with pairs a sample of all pairs, in clusters (the pairs of one prompt), and seeds a sample of all seeds. The mean over both has the
variance σ²_p/N + σ²_s/S + σ²_e/(NS). Averages over seeds estimate the first and third part together, averages over pairs the
second and third, and the residuals the third alone; the sum is the two-way
cluster-robust variance (Cameron, Gelbach and Miller 2011, eq. 2.11).

The seeds' part has ν = S − 1 degrees of freedom only. Where it is the share r of the whole variance, Satterthwaite's
approximation gives ν/r² degrees of freedom; since r is itself estimated on few of them, that covers 92 % in place of 95 at
three seeds. Here it is ν / min(1, r² (1 + 24/ν² · r (1 − r))): a term of second order, whose 24 was found by computing the
coverage over all r. It then lies between 94.9 and 95.7 % for every r and three seeds or more; for smaller tails it is less
accurate (at ν = 2 a p of 0.01 may be 0.02). ``benchmarks/bench_intervals.py`` simulates all of this.

With one seed the seeds' part is unknown. The interval then holds for the trained policies on other pairs, not for the method
with another seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Known:
    """A mean over N pairs and S seeds, with its confidence interval.

    Attributes:
        low, high: the interval. With one seed it holds for that seed's policies only.
        freedom: degrees of freedom of Student's t. p: two-sided, of a true mean of 0.
        pair_variance: of the mean, from pairs that differ whatever the seed, σ²_p/N; at least 0.
        rest_variance: of the mean, from the interaction of pair and seed, σ²_e/(NS); 0 with one seed, where the pairs' part
            includes it.
        seed_variance: of the mean, from seeds, σ²_s/S; at least 0; None with one seed.
    """

    mean: float
    low: float
    high: float
    error: float
    freedom: float
    p: float
    pairs: int
    clusters: int
    seeds: int
    pair_variance: float
    rest_variance: float
    seed_variance: float | None

    @property
    def sd_pairs(self) -> float:
        """Standard deviation of a pair's value over pairs, averaged over seeds."""
        return float(np.sqrt(self.pair_variance * self.pairs))

    @property
    def sd_seeds(self) -> float | None:
        """Standard deviation over seeds of the mean over infinitely many pairs."""
        return None if self.seed_variance is None else float(np.sqrt(self.seed_variance * self.seeds))


def mean_known(values: Floats, clusters: npt.NDArray[np.int64], *, level: float = LEVEL, shares: bool = True) -> Known:
    """The mean over pairs and seeds, with its interval.

    Args:
        values: (N, S), the value of every pair with every seed: 0, ½ or 1 of a share, or the difference of two of them.
        clusters: (N,), numbers from 0; pairs with the same number have the same prompt and may depend on each other.
        shares: false for other values, such as nats: the interval is then not clipped, and has no continuity correction.

    Raises:
        ValueError: without pairs or seeds, or if the shapes do not match.
    """
    pairs, seeds = values.shape
    if not (pairs and seeds) or clusters.shape != (pairs,):
        raise ValueError(
            f"values are {values.shape} and clusters {clusters.shape}: expected (N, S) and (N,), N and S ≥ 1"
        )
    count = int(clusters.max()) + 1
    sums = np.empty((count, seeds))
    for seed in range(seeds):
        sums[:, seed] = np.bincount(clusters, weights=values[:, seed], minlength=count)
    sizes = np.bincount(clusters, minlength=count).astype(np.float64)
    by_seed = sums.sum(axis=0) / pairs
    mean = float(by_seed.mean())
    if count < 2:
        bound = 1.0 if shares else np.inf
        return Known(mean, -bound, bound, np.inf, 1.0, 1.0, pairs, count, seeds, 1.0, 0.0, None)

    over_seeds = sums.mean(axis=1) - sizes * mean  # (C,) deviations of the clusters' sums
    # Half a prompt that differs in each direction (Agresti and Min 2005): if none differs, the next one may.
    unseen = 1.0 / count**2 if shares else 0.0
    from_pairs = count / (count - 1) * float(over_seeds @ over_seeds) / pairs**2 + unseen
    if seeds == 1:
        parts: tuple[float, float, float | None] = (from_pairs, 0.0, None)
        return _known(mean, from_pairs, count - 1.0, level, (pairs, count, seeds), parts, shares)

    from_seeds = float(by_seed.var(ddof=1)) / seeds
    left = sums - sizes[:, None] * by_seed - over_seeds[:, None]  # (C, S)
    rest = count * float((left**2).sum()) / ((count - 1) * (seeds - 1)) / (pairs**2 * seeds)
    lasting = max(from_pairs - rest, unseen)
    variance = lasting + from_seeds
    share = from_seeds / variance if variance else 0.0
    freedom = 1.0 / (1.0 / seed_freedom(share, seeds - 1) + (1 - share) ** 2 / (count - 1))
    parts = (lasting, rest, max(from_seeds - rest, 0.0))
    return _known(mean, variance, freedom, level, (pairs, count, seeds), parts, shares)


def seed_freedom(share: float, freedom: float) -> float:
    """Degrees of freedom of a variance, a share of which was estimated on few degrees of freedom and the rest on many.

    Args:
        share: r, between 0 and 1. freedom: ν, of the share.

    With one degree of freedom (two seeds) the coverage of any such formula varies with r: here between 93 and 97 %.
    """
    if share <= 0:
        return np.inf
    if freedom == 1:
        return 1 / min(1.0, 4 * share * float(np.sqrt(share)))
    return freedom / min(1.0, share**2 * (1 + 24 / freedom**2 * share * (1 - share)))


def _known(
    mean: float,
    variance: float,
    freedom: float,
    level: float,
    counts: tuple[int, int, int],
    parts: tuple[float, float, float | None],
    shares: bool,
) -> Known:
    from scipy import special

    error = float(np.sqrt(variance))
    reach = float(special.stdtrit(freedom, 0.5 + level / 2)) * error
    p = 2 * float(special.stdtr(freedom, -abs(mean) / error)) if error else float(mean == 0)
    low, high = mean - reach, mean + reach
    if shares:
        low, high = max(low, -1.0), min(high, 1.0)
    return Known(mean, low, high, error, freedom, p, *counts, *parts)
