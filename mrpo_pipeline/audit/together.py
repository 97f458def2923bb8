"""What references show side by side: whether the same stretches of text are hard for them, and whether one is another's copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrpo_pipeline.audit.ranks import NONE, correlation, ranks, without_means
from mrpo_pipeline.audit.sample import Texts, Tokens
from mrpo_pipeline.audit.words import surprisal, words_of

_OFTEN = 3  # a word that stands so often in the sample has a mean of its own


@dataclass(frozen=True)
class Likeness:
    """Two references on the sampled completions.

    Attributes:
        hard_words: rank correlation of the nats that they spend per byte on the same words.
        hard_places: the same once each word's own mean is taken away: whether the same words are hard for both in the same
            places. Skill lowers both; numbers of other texts or ids leave nothing of the second.
        same_ids: share of completions with the same token ids in both.
        same_numbers: share of completions with the very same log-probs.
        apart: mean difference in nats per token, over completions with the same ids; NaN where there are none.
        apart_to_spread: its root mean square over the log-probs' standard deviation.
    """

    hard_words: float
    hard_places: float
    same_ids: float
    same_numbers: float
    apart: float
    apart_to_spread: float


def likenesses(every: Sequence[Tokens], texts: Texts) -> dict[tuple[int, int], Likeness]:
    """Each two references, by their positions."""
    if len(every) < 2:
        return {}
    words = words_of(texts)
    rates = [ranks(surprisal(tokens, texts, words) / words.size) for tokens in every]
    placed = [without_means(rate, words.kind) for rate in rates]
    found = {}
    for a in range(len(every)):
        for b in range(a + 1, len(every)):
            often = placed[a][1] >= _OFTEN
            found[a, b] = Likeness(
                hard_words=correlation(rates[a], rates[b]),
                hard_places=correlation(placed[a][0][often], placed[b][0][often]),
                **_same(every[a], every[b]),
            )
    return found


def _same(one: Tokens, other: Tokens) -> dict[str, float]:
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
    return {
        "same_ids": ids / completions if completions else NONE,
        "same_numbers": numbers / completions if completions else NONE,
        "apart": float(np.abs(joined).mean()) if len(joined) else NONE,
        "apart_to_spread": float(np.sqrt(np.square(joined).mean()) / spread) if spread > 0 else NONE,
    }
