"""Weights of the references: α (N, K), α ≥ 0, each row summing to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrpo_pipeline.targets.aggregate import Floats

# Added by the authors' code to Σ_j |Δ_j| before it divides (thaihungle/MRPO, trainer_mref.py).
OFFICIAL_OFFSET = 1e-6


def uniform(pairs: int, references: int) -> Floats:
    """(N, K), α_k = 1/K for every pair."""
    return np.full((pairs, references), 1 / references)


def given(values: Sequence[float], pairs: int) -> Floats:
    """(N, K), the same K weights for every pair: non-negative numbers, not all 0, divided by their sum."""
    row = np.asarray(values, dtype=np.float64)
    return np.tile(row / row.sum(), (pairs, 1))


def adaptive(margins: Floats) -> Floats:
    """(N, K), adaptive reference weights (ARWC, arXiv 2405.16388): α_k = |Δ_k| / Σ_j |Δ_j|.

    A reference with a larger |Δ| gets a larger weight, whether it ranks the pair rightly or wrongly: a corrupted reference
    often has the largest. A pair on which every Δ is 0 gets uniform weights.

    Args:
        margins: Δ (N, K) = ℓ(chosen) − ℓ(rejected), on the unclipped log-probs.
    """
    sizes = np.abs(margins)
    total = sizes.sum(axis=1, keepdims=True)
    result: Floats = np.divide(sizes, total, out=uniform(*margins.shape), where=total > 0)
    return result


def adaptive_official(margins: Floats) -> Floats:
    """(N, 2), the adaptive weights of the authors' code, for K = 2: (1 − α, α) with α = |Δ_2| / (|Δ_1| + |Δ_2| + 1e-6).

    α belongs to the reference that is not the anchor. If both Δ are 0, α is 0, as in the code.
    """
    sizes = np.abs(margins)
    other = sizes[:, 1] / (sizes.sum(axis=1) + OFFICIAL_OFFSET)
    return np.stack([1 - other, other], axis=1)


def discrimination(margins: Floats) -> Floats:
    """VDW (arXiv 2512.10040): α_k ∝ Σ |Δ_k| over the pairs of a held-out split; uniform if all are 0.

    As with :func:`adaptive`, a corrupted reference with large |Δ| gets the largest weight.

    Args:
        margins: Δ (M, K) of the held-out pairs, M ≥ 0.

    Returns:
        (K,), the weights of every pair of the run.
    """
    return _share(np.abs(margins).sum(axis=0))


def accuracy(margins: Floats) -> Floats:
    """VAW (arXiv 2512.10040): α_k ∝ the number of held-out pairs with Δ_k > 0, without ties; uniform if all are 0.

    Shapes as in :func:`discrimination`.
    """
    return _share((margins > 0).sum(axis=0).astype(np.float64))


def _share(sizes: Floats) -> Floats:
    total = sizes.sum()
    result: Floats = sizes / total if total > 0 else np.full(len(sizes), 1 / len(sizes))
    return result


def temper(weights: Floats, temperature: float) -> Floats:
    """(N, K), α_k ∝ α_k^(1/T): T = 1 changes nothing, T → ∞ gives uniform weights, T → 0 puts all weight on the largest.

    A weight of 0 stays 0 at every temperature.
    """
    if temperature == 1:
        return weights
    # Relative to the row's largest weight: otherwise all would underflow to 0 at a low temperature.
    powers = (weights / weights.max(axis=1, keepdims=True)) ** (1 / temperature)
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def lift(weights: Floats, floor: float) -> Floats:
    """(N, K), weights mixed with uniform ones so that none is below the floor: α_k ← floor + (1 − K·floor)·α_k.

    Keeps the order and the sum; at floor = 1/K the weights are uniform.
    """
    if floor == 0:
        return weights
    result: Floats = floor + (1 - weights.shape[1] * floor) * weights
    return result
