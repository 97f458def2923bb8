"""From K references to one: log π̃, the reference of the preference loss.

Every function takes log-probs ℓ (N, K) in nats and weights α (N, K), rows summing to 1, and works in logarithms, since
e^ℓ is 0 in float64 below ℓ = −745. α = 0 removes a reference exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def harmonic(logps: Floats, weights: Floats) -> Floats:
    """MRPO: π̃ = (Σ_k α_k / π_k)⁻¹, so log π̃ = −logsumexp_k(log α_k − ℓ_k).

    The closed-form lower bound of arXiv 2405.16388: by Jensen, Σ_k α_k log(π/π_k) ≤ log Σ_k α_k π/π_k. It lies in
    [min_k ℓ_k, min_k(ℓ_k − log α_k)]: where sums differ by tens of nats it is nearly the smallest one.

    Args:
        logps: (N, K), nats.
        weights: (N, K), rows summing to 1.

    Returns:
        (N,), nats.
    """
    result: Floats = -_logsumexp(_log(weights) - logps)
    return result


def geometric(logps: Floats, weights: Floats) -> Floats:
    """log π̃ = Σ_k α_k ℓ_k: the exact solution under reverse KL (arXiv 2502.01203).

    Its normaliser depends on the prompt alone and cancels within a pair. Shapes as in :func:`harmonic`.
    """
    result: Floats = (weights * logps).sum(axis=1)
    return result


def arithmetic(logps: Floats, weights: Floats) -> Floats:
    """log π̃ = logsumexp_k(log α_k + ℓ_k): the mixture of the references.

    A heuristic beside the forward-KL solution of arXiv 2502.01203. Shapes as in :func:`harmonic`.
    """
    return _logsumexp(_log(weights) + logps)


AGGREGATES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "harmonic": harmonic,
    "geometric": geometric,
    "arithmetic": arithmetic,
}


def influence(aggregate: str, logps: Floats, weights: Floats) -> Floats:
    """How much of log π̃ each reference decides: ρ_k = ∂ log π̃ / ∂ ℓ_k.

    ``harmonic``: softmax_k(log α_k − ℓ_k). ``arithmetic``: softmax_k(log α_k + ℓ_k). ``geometric``: α_k.

    Returns:
        (N, K), rows summing to 1.
    """
    if aggregate == "geometric":
        return weights
    scores = _log(weights) + (logps if aggregate == "arithmetic" else -logps)
    result: Floats = np.exp(scores - _logsumexp(scores)[:, None])
    return result


def _log(weights: Floats) -> Floats:
    with np.errstate(divide="ignore"):  # α = 0 is legal: log 0 = −inf drops the reference from a logsumexp
        result: Floats = np.log(weights)
    return result


def _logsumexp(values: Floats) -> Floats:
    # With one finite term this returns that term bit for bit: K = 1, or one-hot weights, change nothing.
    largest = values.max(axis=1)
    result: Floats = largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))
    return result
