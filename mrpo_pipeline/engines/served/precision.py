"""Infer from log-probs whether they are log-probs at all, and in which precision they were computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mrpo_pipeline.engines.base import LogProbs

_ROUNDING = 1e-3
# float16 keeps 11 bits and bfloat16 8: a logit of 1 or more in size is a multiple of 2⁻¹⁰, and so is the difference of two. The
# difference of two float32 logits is one by chance in 2 of a hundred, at the exactness of float32's log-softmax.
_STEP, _EXACT, _MOST = 2.0**-10, 1e-5, 0.5


def is_distribution(row: Mapping[str, float]) -> bool:
    """Whether the log-probs of some tokens at one position can be those of a distribution: logits can't."""
    return sum(math.exp(min(logp, 1.0)) for logp in row.values()) <= 1.0 + _ROUNDING


def computes_in_16_bits(rows: Sequence[Mapping[str, float]]) -> bool:
    """Whether log-probs were computed from 16-bit logits: differences at one position are those of logits.

    True without evidence, such as when every token is the likeliest.
    """
    pairs = [list(row.values())[:2] for row in rows if len(row) > 1]
    if not pairs:
        return True
    steps = np.abs([first - second for first, second in pairs]) / _STEP
    on_grid = np.abs(steps - np.round(steps)) * _STEP < _EXACT
    return bool(on_grid.mean() >= _MOST)


def apart(first: Sequence[LogProbs], second: Sequence[LogProbs]) -> float:
    """Mean |difference| of two answers to the same texts, in nats per token."""
    return float(np.abs(np.concatenate(list(first)).astype(np.float64) - np.concatenate(list(second))).mean())
