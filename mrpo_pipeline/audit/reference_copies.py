"""Two references compared: is one a copy of the other, or the same model in another precision?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.sampled_tokens import Tokens
from mrpo_pipeline.audit.statistics import NAN


@dataclass(frozen=True)
class Similarity:
    """Two references on the sampled completions.

    Attributes:
        same_ids, same_logps: shares of completions with equal token ids, or equal log-probs.
        mean_difference: nats per token, over completions with equal ids; NaN without any.
        relative_difference: root mean square difference over the log-probs' standard deviation.
    """

    same_ids: float
    same_logps: float
    mean_difference: float
    relative_difference: float

    @property
    def is_one_model(self) -> bool:
        """Whether they are one model, computed in different ways."""
        close = self.same_ids > thresholds.NEARLY_ALL and self.relative_difference < thresholds.SAME_MODEL
        return close and self.same_logps <= thresholds.NEARLY_ALL and self.mean_difference > thresholds.COPY_NATS


def similarities(every: Sequence[Tokens]) -> dict[tuple[int, int], Similarity]:
    """The similarity of each two references, by their indices."""
    return {(a, b): _similarity(every[a], every[b]) for a, b in combinations(range(len(every)), 2)}


def _similarity(one: Tokens, other: Tokens) -> Similarity:
    same_ids, same_logps, differences, values = [], [], [], []
    for at in range(len(one.starts) - 1):
        a, b = (tokens.logps[tokens.starts[at] : tokens.starts[at + 1]] for tokens in (one, other))
        same_ids.append(np.array_equal(one.full_ids[at], other.full_ids[at]))
        same_logps.append(np.array_equal(a, b))
        if same_ids[-1] and len(a) == len(b):
            differences.append(a.astype(np.float64) - b)
            values.append(a)
    joined = np.concatenate(differences) if differences else np.empty(0)
    spread = float(np.concatenate(values).std()) if len(joined) else 0.0
    return Similarity(
        same_ids=float(np.mean(same_ids)) if same_ids else NAN,
        same_logps=float(np.mean(same_logps)) if same_logps else NAN,
        mean_difference=float(np.abs(joined).mean()) if len(joined) else NAN,
        relative_difference=float(np.sqrt(np.square(joined).mean()) / spread) if spread > 0 else NAN,
    )
