"""Ranking accuracy, Δ and nats per byte of each reference over all pairs, and agreement between references. Sums only, no tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrpo_pipeline.audit.sampled_tokens import Bools, Floats, Ints
from mrpo_pipeline.audit.statistics import correlation, rank_correlation
from mrpo_pipeline.targets.diagnostics import TIE_ABSOLUTE, TIE_RELATIVE

Z95 = 1.959963984540054
LENGTH_BINS = 4


@dataclass(frozen=True)
class Scored:
    """N pairs with the sums of K references.

    Attributes:
        names: K references, the anchor first.
        prompts: (N,) a number per prompt.
        chosen, rejected: (N, K) nats.
        chosen_bytes, rejected_bytes: (N,) bytes up to the cut.
        chosen_tokens, rejected_tokens: (N, K) each reference's tokens up to the cut.
    """

    names: list[str]
    prompts: Ints
    chosen: Floats
    rejected: Floats
    chosen_bytes: Ints
    rejected_bytes: Ints
    chosen_tokens: Ints
    rejected_tokens: Ints

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def margins(self) -> Floats:
        """Δ (N, K), nats."""
        return self.chosen - self.rejected

    @property
    def right(self) -> Floats:
        """(N, K): 1 where the reference prefers the chosen side, ½ at a tie, else 0."""
        ties = np.isclose(self.chosen, self.rejected, rtol=TIE_RELATIVE, atol=TIE_ABSOLUTE)
        return np.where(ties, 0.5, self.chosen > self.rejected)


def share_with_interval(values: Floats, clusters: Ints) -> tuple[float, float, float]:
    """Mean of values from 0 to 1 with its 95% Wilson interval for the effective number of pairs.

    Pairs of one prompt are correlated: the variance of the mean is taken over prompts (linearised ratio variance, with C/(C − 1)),
    and the effective number is that of independent pairs with the same variance, at most N. Where all values are equal, it is the
    number of prompts.

    Args:
        values: (N,) such as 1 for right and 0 for wrong.
        clusters: (N,) a number per prompt.

    Returns:
        mean, low, high; NaN without pairs.
    """
    count = len(values)
    if not count:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    _, inverse = np.unique(clusters, return_inverse=True)
    sums = np.bincount(inverse, weights=values - mean)
    groups = len(sums)
    effective = float(groups)
    if groups > 1:
        variance = float(np.square(sums).sum()) * groups / (groups - 1) / count**2
        if variance > 0:
            effective = min(mean * (1 - mean) / variance, float(count))
    middle = (mean + Z95**2 / (2 * effective)) / (1 + Z95**2 / effective)
    half = Z95 / (1 + Z95**2 / effective) * math.sqrt(mean * (1 - mean) / effective + Z95**2 / (4 * effective**2))
    # At 0 and 1 a bound equals the mean up to rounding.
    return mean, min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half))


def reference_metrics(scored: Scored, at: int) -> dict[str, Any]:
    """The metrics of one reference over all pairs.

    ``nats_per_byte`` and ``nats_per_token`` are ratios of totals, with the end-of-turn token. Nats per token depend on the reference's
    tokenizer and are not comparable between references.
    """
    margins = scored.margins[:, at]
    right, low, high = share_with_interval(scored.right[:, at], scored.prompts)
    sides = {
        "chosen": (scored.chosen, scored.chosen_bytes, scored.chosen_tokens),
        "rejected": (scored.rejected, scored.rejected_bytes, scored.rejected_tokens),
    }
    return {
        "nats_per_byte": {side: _ratio(-sums[:, at].sum(), size.sum()) for side, (sums, size, _) in sides.items()},
        "nats_per_token": {side: _ratio(-sums[:, at].sum(), n[:, at].sum()) for side, (sums, _, n) in sides.items()},
        "accuracy": {"share": right, "low": low, "high": high},
        "ties": float((scored.right[:, at] == 0.5).mean()),
        "delta": {
            "mean": float(margins.mean()),
            "median_abs": float(np.median(np.abs(margins))),
            "length_correlation": rank_correlation(margins, scored.chosen_bytes - scored.rejected_bytes),
        },
        "by_length": _by_length(scored, at),
    }


def _by_length(scored: Scored, at: int) -> list[dict[str, Any]]:
    """Quarters of the pairs by the bytes of both sides together."""
    size = scored.chosen_bytes + scored.rejected_bytes
    edges = np.unique(np.quantile(size, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1], method="nearest"))
    bins = np.searchsorted(edges, size, side="left")
    found = []
    for one in np.unique(bins):
        inside: Bools = bins == one
        margins = scored.margins[inside, at]
        share, low, high = share_with_interval(scored.right[inside, at], scored.prompts[inside])
        found.append(
            {
                "bytes_from": int(size[inside].min()),
                "bytes_to": int(size[inside].max()),
                "pairs": int(inside.sum()),
                "accuracy": {"share": share, "low": low, "high": high},
                "delta_mean": float(margins.mean()),
                "delta_median_abs": float(np.median(np.abs(margins))),
            }
        )
    return found


def agreement(scored: Scored) -> list[dict[str, Any]]:
    """For each two references: share of pairs that they rank the same, Pearson's correlation of Δ, and Spearman's of nats per byte
    over completions."""
    sizes = np.concatenate([scored.chosen_bytes, scored.rejected_bytes])
    rates = -np.concatenate([scored.chosen, scored.rejected]) / np.maximum(sizes, 1)[:, None]
    margins = scored.margins
    found = []
    for a in range(len(scored.names)):
        for b in range(a + 1, len(scored.names)):
            same = 1 - np.abs(scored.right[:, a] - scored.right[:, b])
            found.append(
                {
                    "references": [scored.names[a], scored.names[b]],
                    "same_ranking": float(same.mean()),
                    "delta": correlation(margins[:, a], margins[:, b]),
                    "nats_per_byte": rank_correlation(rates[:, a], rates[:, b]),
                }
            )
    return found


def _ratio(value: float, count: float) -> float:
    return float(value / count) if count else math.nan
