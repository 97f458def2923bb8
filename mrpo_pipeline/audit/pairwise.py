"""Two references side by side: whether one is the other's copy, or the same model computed in another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mrpo_pipeline.audit.sample import Tokens
from mrpo_pipeline.audit.statistics import NONE


@dataclass(frozen=True)
class Likeness:
    """Two references on the sampled completions.

    Attributes:
        same_ids: share of completions with the same token ids in both.
        same_numbers: share of completions with the very same log-probs.
        apart: mean difference in nats per token, over completions with the same ids; NaN where there are none.
        apart_to_spread: its root mean square over the log-probs' standard deviation.
    """

    same_ids: float
    same_numbers: float
    apart: float
    apart_to_spread: float


def likenesses(every: Sequence[Tokens]) -> dict[tuple[int, int], Likeness]:
    """Each two references, by their positions."""
    return {(a, b): _likeness(every[a], every[b]) for a, b in combinations(range(len(every)), 2)}


def _likeness(one: Tokens, other: Tokens) -> Likeness:
    completions = len(one.starts) - 1
    ids = numbers = 0
    gaps, values = [], []
    for at in range(completions):
        mine, theirs = (slice(tokens.starts[at], tokens.starts[at + 1]) for tokens in (one, other))
        same_ids = np.array_equal(one.full_ids[at], other.full_ids[at])
        ids += same_ids
        numbers += np.array_equal(one.logps[mine], other.logps[theirs])
        if same_ids and len(one.logps[mine]) == len(other.logps[theirs]):
            gaps.append(one.logps[mine].astype(np.float64) - other.logps[theirs])
            values.append(one.logps[mine])
    joined = np.concatenate(gaps) if gaps else np.empty(0)
    spread = float(np.concatenate(values).std()) if len(joined) else 0.0
    return Likeness(
        same_ids=ids / completions if completions else NONE,
        same_numbers=numbers / completions if completions else NONE,
        apart=float(np.abs(joined).mean()) if len(joined) else NONE,
        apart_to_spread=float(np.sqrt(np.square(joined).mean()) / spread) if spread > 0 else NONE,
    )
