"""Totals over all prompts from a sample of prompts: tokens per byte in the sample, times the bytes of all.

A hash puts every prompt, with all its pairs, into the sample with probability f. The error is that of the ratio estimator over
prompts, Var = (1 − f) / f² · Σ e² with e the residuals of the ratio (Särndal, Swensson and Wretman, Model Assisted Survey
Sampling, 1992, section 7.3).
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
"""The size that values are proportional to: bytes of prompt and completion, bytes of the completion, or the number of completions."""

KEY = pl.col("prompt").hash(1)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the half width of its 95% interval in the same unit; 0 where it is a count."""

    value: float
    error: float = 0.0

    @property
    def relative_error(self) -> float:
        """The half width as a share of the value."""
        return self.error / self.value if self.value else 0.0

    def times(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.error * factor)


def sampled(frame: pl.DataFrame, step: int, key: pl.Expr = KEY) -> pl.DataFrame:
    """The pairs of one prompt in ``step``, by the prompt's hash; all pairs where the step is 1."""
    return frame if step == 1 else frame.filter(key < pl.lit((1 << 64) // step, dtype=pl.UInt64))


class Extrapolation:
    """Extrapolate from completions, or pairs, of the sampled prompts to those of all prompts.

    Args:
        frames: all pairs: ``prompt``, ``chosen``, ``rejected``.
        step: of ``sampled``; with 1 the sample is everything.
        prompts: (n,) the prompt of each completion or pair whose values ``total`` takes.
        distinct: count a completion once, in however many pairs it is.
    """

    def __init__(self, frames: Iterable[pl.DataFrame], step: int, prompts: pl.Series, *, distinct: bool) -> None:
        self.step = step
        if step > 1:
            everyone = _sizes_by_prompt(frames, distinct=distinct)
            self._totals = everyone.sum().row(0, named=True)
            self._sample = sampled(everyone, step, pl.col("prompt"))
            self._places = self._sample["prompt"].search_sorted(prompts.hash(1)).to_numpy()

    def total(self, values: npt.NDArray[Any], by: str = TEXT) -> Estimate:
        """Σ over all prompts, from the values (n,) of the sampled completions or pairs."""
        if self.step == 1:
            return Estimate(float(values.sum()))
        sizes = self._sample[by].to_numpy()
        sums = np.bincount(self._places, weights=values, minlength=len(sizes))
        ratio = sums.sum() / max(sizes.sum(), 1)
        variance = self.step * (self.step - 1) * float(((sums - ratio * sizes) ** 2).sum())
        return Estimate(float(ratio * self._totals[by]), 1.96 * variance**0.5)

    def count(self, hits: npt.NDArray[np.bool_]) -> Estimate:
        """Number of all completions or pairs for which ``hits`` (n,), known for the sampled ones, is true."""
        return self.total(hits, NUMBER)


def _sizes_by_prompt(frames: Iterable[pl.DataFrame], *, distinct: bool) -> pl.DataFrame:
    """``prompt`` (its hash, sorted), and each size summed over the prompt's completions."""
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
