"""Totals over all data from a sample of whole prompts, and how far off they may be.

Every prompt is in the sample with the same probability f, independent of the others, and all its pairs with it. Bytes of every pair
are known, so tokens are taken in proportion to bytes, apart for prompts whose texts are of like length (cuts act on long texts
alone). The error comes from what the proportion leaves over, by prompt: Var = (1 − f) / f² · Σ e²
(C.-E. Särndal, B. Swensson, J. Wretman, Model Assisted Survey Sampling, 1992, equations 3.5.4 and 7.10.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

SIDES = ("chosen", "rejected")
TEXT, COMPLETION, NUMBER = "text", "completion", "number"
"""What a value is about in proportion to: bytes of prompt and completion, bytes of the completion, or the number of completions."""

KEY = pl.col("prompt").hash(1)
# Of like length: cuts bend the proportion, and the longest texts are unlike. 8 classes leave twice the error of 32.
_MOST_CLASSES, _PROMPTS_IN_CLASS = 32, 20


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


def sampled(frame: pl.DataFrame, step: int) -> pl.DataFrame:
    """The pairs of every ``step``-th prompt, by a hash of it; all of them where the step is 1."""
    return frame if step == 1 else frame.filter(pl.lit((1 << 64) // step, dtype=pl.UInt64) > KEY)


class Extrapolation:
    """From completions, or pairs, of the sampled prompts to those of all prompts.

    Args:
        frames: all pairs: ``prompt``, ``chosen``, ``rejected``.
        step: of ``sampled``; with 1 the sample is everything.
        prompts: (n,) the prompt of each completion or pair whose values are given to ``total``.
        distinct: whether a completion counts once, in however many pairs it is.
    """

    def __init__(self, frames: Iterable[pl.DataFrame], step: int, prompts: pl.Series, *, distinct: bool) -> None:
        self.step = step
        if step == 1:
            return
        everyone = _sizes_by_prompt(frames, distinct=distinct)
        inside = everyone.filter(pl.lit((1 << 64) // step, dtype=pl.UInt64) > pl.col("prompt"))
        self._places = inside["prompt"].search_sorted(prompts.hash(1)).to_numpy()
        lengths = [(frame[TEXT] / frame[NUMBER]).to_numpy() for frame in (inside, everyone)]
        self._count = max(1, min(_MOST_CLASSES, len(inside) // _PROMPTS_IN_CLASS))
        edges = np.quantile(lengths[0], np.arange(1, self._count) / self._count) if len(inside) else []
        self._classes, classes = (np.searchsorted(edges, one) for one in lengths)
        self._sizes = {by: inside[by].to_numpy() for by in (TEXT, COMPLETION, NUMBER)}
        self._totals = {by: _sums(classes, everyone[by].to_numpy(), self._count) for by in self._sizes}

    def total(self, values: npt.NDArray[Any], by: str = TEXT) -> Estimate:
        """Σ over all prompts, from the values (n,) of the sampled ones' completions or pairs."""
        if self.step == 1:
            return Estimate(float(values.sum()))
        sizes = self._sizes[by]
        sums = _sums(self._places, values, len(sizes))
        seen = _sums(self._classes, sizes, self._count)
        ratios = _sums(self._classes, sums, self._count) / np.maximum(seen, 1)
        left_over = sums - ratios[self._classes] * sizes
        variance = self.step * (self.step - 1) * float((left_over**2).sum())
        return Estimate(float(ratios @ self._totals[by]), 1.96 * variance**0.5)

    def count(self, hits: npt.NDArray[np.bool_]) -> Estimate:
        """How many there are like the marked ones."""
        return self.total(hits, NUMBER)


def _sums(places: npt.NDArray[Any], values: npt.NDArray[Any], count: int) -> npt.NDArray[np.float64]:
    return np.bincount(places, weights=values, minlength=count).astype(np.float64)


def _sizes_by_prompt(frames: Iterable[pl.DataFrame], *, distinct: bool) -> pl.DataFrame:
    """``prompt`` (its hash, sorted), and for each size its sum over the prompt's completions."""
    sides = pl.concat(
        frame.select(
            KEY, pl.col(side).hash(1).alias("side"), pl.col("prompt").str.len_bytes().alias("before"),
            pl.col(side).str.len_bytes().cast(pl.Float64).alias(COMPLETION),
        )
        for frame in frames
        for side in SIDES
    )  # fmt: skip
    sides = sides.unique(["prompt", "side"]) if distinct else sides
    return (
        sides.group_by("prompt")
        .agg((pl.col("before") + pl.col(COMPLETION)).sum().alias(TEXT), pl.sum(COMPLETION), pl.len().alias(NUMBER))
        .sort("prompt")
    )
