"""What the references say of the pairs: who ranks them rightly, how surely, alike or not, by length. Sums alone, no tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrpo_pipeline.audit.sample import Bools, Floats, Ints
from mrpo_pipeline.audit.statistics import correlation, rank_correlation
from mrpo_pipeline.targets.diagnostics import TIE_ABSOLUTE, TIE_RELATIVE

Z95 = 1.959963984540054
LENGTH_BINS = 4


@dataclass(frozen=True)
class Scored:
    """N pairs with the sums of K references.

    Attributes:
        names: K references, the anchor first.
        prompts: (N,) the same number for the same prompt.
        chosen, rejected: (N, K) nats.
        chosen_bytes, rejected_bytes: (N,) bytes of the text that counts.
        chosen_tokens, rejected_tokens: (N, K) tokens that count, each reference's own.
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
        """(N, K): 1 where the reference puts the chosen side first, ½ at a tie, else 0."""
        ties = np.isclose(self.chosen, self.rejected, rtol=TIE_RELATIVE, atol=TIE_ABSOLUTE)
        return np.where(ties, 0.5, self.chosen > self.rejected)


def share_with_interval(values: Floats, clusters: Ints) -> tuple[float, float, float]:
    """A mean of values from 0 to 1, and its 95% interval: Wilson's, for as many pairs as the clusters are worth.

    Pairs of one prompt are alike. The variance of the mean is therefore taken over prompts (the linearised variance of a
    ratio, with C/(C − 1)); the number of independent pairs that would give the same variance, at most N, is what Wilson's
    interval is computed for. Where all values agree there is no variance to go by: the prompts are counted instead.

    Args:
        values: (N,) shares, such as 1 for right and 0 for wrong.
        clusters: (N,) the same number for pairs of one prompt.

    Returns:
        mean, low, high; NaN where there is no pair.
    """
    count = len(values)
    if not count:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    _, inverse = np.unique(clusters, return_inverse=True)
    sums = np.bincount(inverse, weights=values - mean)
    groups = len(sums)
    worth = float(groups)
    if groups > 1:
        variance = float(np.square(sums).sum()) * groups / (groups - 1) / count**2
        if variance > 0:
            worth = min(mean * (1 - mean) / variance, float(count))
    middle = (mean + Z95**2 / (2 * worth)) / (1 + Z95**2 / worth)
    half = Z95 / (1 + Z95**2 / worth) * math.sqrt(mean * (1 - mean) / worth + Z95**2 / (4 * worth**2))
    # At 0 and at 1 a bound is the mean itself, but for the last bit.
    return mean, min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half))


def reference_figures(scored: Scored, at: int) -> dict[str, Any]:
    """The figures of one reference over all pairs.

    ``nats_per_byte`` and ``nats_per_token`` are totals over totals (the end-of-turn token's nats among them); tokens are the
    reference's own, so that nats a token compare with nobody else's.
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
        "ranked_rightly": {"share": right, "low": low, "high": high},
        "ties": float((scored.right[:, at] == 0.5).mean()),
        "delta": {
            "mean": float(margins.mean()),
            "median_size": float(np.median(np.abs(margins))),
            "by_length_difference": rank_correlation(margins, scored.chosen_bytes - scored.rejected_bytes),
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
                "ranked_rightly": {"share": share, "low": low, "high": high},
                "delta_mean": float(margins.mean()),
                "delta_median_size": float(np.median(np.abs(margins))),
            }
        )
    return found


def agreement(scored: Scored) -> list[dict[str, Any]]:
    """Each two references: the share of pairs that they rank alike, and how their numbers go together.

    ``delta`` is Pearson's correlation of Δ, ``delta_ranks`` Spearman's; ``nats_per_byte`` is Spearman's over completions.
    """
    sizes = np.concatenate([scored.chosen_bytes, scored.rejected_bytes])
    rates = -np.concatenate([scored.chosen, scored.rejected]) / np.maximum(sizes, 1)[:, None]
    margins = scored.margins
    found = []
    for a in range(len(scored.names)):
        for b in range(a + 1, len(scored.names)):
            alike = 1 - np.abs(scored.right[:, a] - scored.right[:, b])
            found.append(
                {
                    "references": [scored.names[a], scored.names[b]],
                    "ranked_alike": float(alike.mean()),
                    "delta": correlation(margins[:, a], margins[:, b]),
                    "delta_ranks": rank_correlation(margins[:, a], margins[:, b]),
                    "nats_per_byte": rank_correlation(rates[:, a], rates[:, b]),
                }
            )
    return found


def _ratio(value: float, count: float) -> float:
    return float(value / count) if count else math.nan
