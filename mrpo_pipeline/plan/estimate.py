"""Totals over all data from a sample of whole prompts, and how far off they may be.

A prompt is in the sample when its hash falls below a threshold: every prompt with the same probability f, independent of
the others, and all its pairs with it (Poisson sampling of clusters). Bytes of every pair and completion are known, so tokens
are taken in proportion to bytes, apart for texts of like length (cuts act on long texts alone): a separate ratio estimator.
Its error comes from what the proportion leaves over, summed up by prompt: Var = (1 − f) / f² · Σ_c (Σ_{i in c} e_i)²
(C.-E. Särndal, B. Swensson, J. Wretman, Model Assisted Survey Sampling, 1992, equations 3.5.4 and 7.10.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FEWEST = 30  # units of the sample in a class of lengths: below that a ratio says little, and classes are joined


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and the half width of its 95% interval in the same unit; 0 where it was counted."""

    value: float
    error: float = 0.0

    @property
    def relative_error(self) -> float:
        """The half width as a share of the value."""
        return self.error / self.value if self.value else 0.0

    def times(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.error * factor)

    def plus(self, other: Estimate) -> Estimate:
        """The sum; errors are added as if they went together, which is on the safe side."""
        return Estimate(self.value + other.value, self.error + other.error)


class Expansion:
    """From the units of a sample to all units.

    Args:
        sizes: by a name, (n,) bytes of the sampled units: what their values may be in proportion to. The first decides which
            units are of like length.
        clusters: (n,) which prompt each belongs to, as numbers.
        population: by the same names, (N,) bytes of all units, the sampled ones among them.
        share: f, the probability of a prompt to be in the sample; with 1 the sample is everything.
    """

    def __init__(
        self,
        sizes: Mapping[str, Floats],
        clusters: npt.NDArray[np.uint64],
        population: Mapping[str, Floats],
        share: float,
    ) -> None:
        self.share = share
        self._first = next(iter(sizes))
        self._clusters = np.unique(clusters, return_inverse=True)[1] if len(clusters) else clusters
        self._classes, everyone = _classes(sizes[self._first], population[self._first])
        count = int(self._classes.max(initial=-1)) + 1
        self._sizes: dict[str | None, Floats] = {None: np.ones(len(self._classes))}
        self._totals: dict[str | None, Floats] = {None: np.zeros(count) + np.bincount(everyone, minlength=count)}
        for name in sizes:
            self._sizes[name] = sizes[name].astype(np.float64)
            self._totals[name] = np.zeros(count) + np.bincount(
                everyone, weights=population[name].astype(np.float64), minlength=count
            )

    def total(self, values: Floats, by: str | None = "") -> Estimate:
        """Σ over all units of what is known of the sampled ones.

        Args:
            values: (n,) of the sampled units.
            by: the size that they are in proportion to, the first where not given; None for the number of units.
        """
        values = values.astype(np.float64)
        if self.share >= 1:
            return Estimate(float(values.sum()))
        if not len(values):
            return Estimate(0.0, float("inf"))
        sizes, everything = (known[self._first if by == "" else by] for known in (self._sizes, self._totals))
        count = len(everything)
        ratio = np.bincount(self._classes, weights=values, minlength=count)
        ratio = ratio / np.maximum(np.bincount(self._classes, weights=sizes, minlength=count), 1e-300)
        left_over = np.bincount(self._clusters, weights=values - ratio[self._classes] * sizes)
        variance = (1 - self.share) / self.share**2 * float((left_over**2).sum())
        return Estimate(float((ratio * everything).sum()), 1.96 * variance**0.5)

    def count(self, hits: npt.NDArray[np.bool_]) -> Estimate:
        """How many of all units are like the sampled ones that are marked."""
        return self.total(hits.astype(np.float64), None)


def _classes(sample: Floats, population: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Classes of like length of both, numbered from 0: half octaves, joined until each holds enough of the sample."""
    if not len(sample):
        return np.zeros(0, np.int64), np.zeros(len(population), np.int64)
    raw = [np.floor(2 * np.log2(np.maximum(sizes, 1))).astype(np.int64) for sizes in (sample, population)]
    edges: list[int] = []  # the highest half octave of every class but the last
    held = 0
    for level, number in zip(*np.unique(raw[0], return_counts=True), strict=True):
        held += int(number)
        if held >= FEWEST:
            edges.append(int(level))
            held = 0
    if edges:  # what is left over above joins the class below it
        edges.pop()
    return np.searchsorted(edges, raw[0], side="left"), np.searchsorted(edges, raw[1], side="left")
