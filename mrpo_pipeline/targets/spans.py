"""Mix references span by span: log π̃ = Σ_j A_k(s_kj), where s_kj is reference k's log-prob of span j.

Log-probs of completions differ by tens of nats, so that one reference decides; over spans each reference decides where it differs.
A span is the part of a completion between two positions at which tokens of all references end. The method is this project's; with
one tokenizer and ``arithmetic`` it is the token-level mixture Π_t Σ_k α_k π_k(y_t | y_<t) of the code released for arXiv 2502.01203.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.targets.aggregate import Floats

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spans:
    """The log-probs of N completions under K references, span by span: S spans in all."""

    lengths: Ints
    """(N,) number of spans of each completion, at least 1."""
    logps: Floats
    """(K, S), nats, completion after completion. The spans of a completion add up to its log-prob."""

    def take(self, rows: Ints) -> Spans:
        """The spans of some of the completions, in that order."""
        lengths = self.lengths[rows]
        starts = (np.cumsum(self.lengths) - self.lengths)[rows]
        own = np.cumsum(lengths) - lengths
        at = np.arange(int(lengths.sum())) + np.repeat(starts - own, lengths)
        return Spans(lengths, np.ascontiguousarray(self.logps[:, at]))


@dataclass(frozen=True, slots=True)
class PairSpans:
    """Both sides of consecutive pairs."""

    chosen: Spans
    rejected: Spans


@dataclass(slots=True)
class SpanCounts:
    """Which references decide, counted over all mixed spans."""

    spans: int
    effective: float
    """Σ over the spans of 1/Σ_k ρ_k²."""
    smallest: Floats
    """(K,) number of spans in which each reference has the smallest log-prob; ties are shared."""

    @classmethod
    def none(cls, references: int) -> SpanCounts:
        return cls(spans=0, effective=0.0, smallest=np.zeros(references))

    def add(self, other: SpanCounts) -> None:
        self.spans += other.spans
        self.effective += other.effective
        self.smallest = self.smallest + other.smallest


def mix(aggregate: str, spans: Spans, sums: Floats, clipped: Floats, weights: Floats) -> tuple[Floats, SpanCounts]:
    """For each completion, log π̃ minus the clipped log-prob of the reference with the largest weight.

    The difference is exactly 0 for identical references, and for weight 1 on one reference.

    The trust region clips the log-probs of completions: a reference's spans are scaled by clipped / sum, so that they add up to its
    clipped log-prob. If its sum is 0, the clipped log-prob is distributed in proportion to the anchor's spans.

    Args:
        aggregate: ``harmonic`` or ``arithmetic``; ``geometric`` is the same over spans as over completions.
        sums, clipped: (N, K) before and after the trust region, in any one unit.
        weights: α (N, K), rows summing to 1.

    Returns:
        (N,) nats, to be added to that reference's clipped log-prob; and the counts of these spans.
    """
    logps = _scaled(spans, sums, clipped)
    alpha = np.repeat(weights.T, spans.lengths, axis=1)  # (K, S)
    base = np.repeat(weights.argmax(axis=1), spans.lengths)  # (S,)
    sign = 1.0 if aggregate == "arithmetic" else -1.0
    apart = sign * (logps - np.take_along_axis(logps, base[None], axis=0))
    apart = np.where(alpha > 0, apart, -np.inf)
    largest = apart.max(axis=0)
    shares = alpha * np.exp(apart - largest)
    total = shares.sum(axis=0)
    mixed = sign * (largest + np.log(total / alpha.sum(axis=0)))
    starts = np.cumsum(spans.lengths) - spans.lengths
    counts = SpanCounts(len(base), float((total**2 / np.square(shares).sum(axis=0)).sum()), _smallest(logps))
    apart_sums: Floats = np.add.reduceat(mixed, starts)
    return apart_sums, counts


def _scaled(spans: Spans, sums: Floats, clipped: Floats) -> Floats:
    """(K, S) spans, scaled to add up to the clipped log-probs."""
    logps: Floats = spans.logps
    moved = clipped != sums
    if not moved.any():
        return logps
    certain = moved & (sums >= 0)
    factors = np.divide(clipped, sums, out=np.ones_like(sums), where=moved & ~certain)
    logps = logps * np.repeat(factors.T, spans.lengths, axis=1)
    anchor = sums[:, 0]
    for k in np.flatnonzero(certain.any(axis=0)):
        spread = np.divide(clipped[:, k], anchor, out=np.zeros_like(anchor), where=anchor != 0)
        spread = np.repeat(spread, spans.lengths) * spans.logps[0]
        logps[k] = np.where(np.repeat(certain[:, k], spans.lengths), spread, logps[k])
    return logps


def _smallest(logps: Floats) -> Floats:
    smallest = logps == logps.min(axis=0)
    result: Floats = (smallest / smallest.sum(axis=0)).sum(axis=1)
    return result
