"""Multiple testing: correct p-values so that the probability of any false claim stays at the level."""

from __future__ import annotations

from collections.abc import Sequence

# Significance level.
ALPHA = 0.05


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): valid however the comparisons depend on each other.

    The smallest of m p-values is multiplied by m, the next by m − 1, and so on, none ending below the one before it.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    least = 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected
