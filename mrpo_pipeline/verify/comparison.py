"""Cached log-probs of a completion beside recomputed ones, and statistics over many. Pure arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.engines.base import TokenIds

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """A completion whose first S tokens have the same ids in the cache and as rendered now.

    Attributes:
        completion_id: 32 hex digits.
        text: the canonical text of the completion.
        cached_prompt_tokens, prompt_tokens: length of the prompt in the cache (which keeps no prompt ids), and as rendered now.
        cached_ids: (C,) ids in the cache. ids: (D,) scored ids as rendered now, end-of-turn token last.
        complete: whether the cached row says that it covers the completion and its end-of-turn token.
        byte_ends: (D,) of ``ids``, in the completion's bytes.
        cached, recomputed: (S,) log-probs in nats.
    """

    completion_id: str
    text: str
    cached_prompt_tokens: int
    prompt_tokens: int
    cached_ids: TokenIds
    ids: TokenIds
    complete: bool
    byte_ends: TokenIds
    cached: npt.NDArray[np.float32]
    recomputed: npt.NDArray[np.float32]

    @property
    def ids_agree(self) -> bool:
        """Whether the cached ids are those of the text: all if the row is complete, else a prefix."""
        return len(self.cached) == len(self.cached_ids) and self.complete == (len(self.cached_ids) == len(self.ids))

    @property
    def same_text(self) -> bool:
        """Whether ids and prompt length agree."""
        return self.ids_agree and self.cached_prompt_tokens == self.prompt_tokens

    @cached_property
    def difference(self) -> Floats:
        """(S,) cached − recomputed."""
        return self.cached.astype(np.float64) - self.recomputed.astype(np.float64)

    def token_text(self, position: int) -> str:
        """The token's text in the completion; empty for the end-of-turn token."""
        if position == len(self.ids) - 1:
            return ""
        start = int(self.byte_ends[position - 1]) if position else 0
        return self.text.encode()[start : int(self.byte_ends[position])].decode(errors="replace")


@dataclass(frozen=True)
class Differences:
    """|cached − recomputed| in nats, over all tokens and over the completions' sums."""

    completions: int
    tokens: int
    token_mean: float
    token_p99: float
    token_max: float
    sum_mean: float
    sum_max: float


def differences(compared: Sequence[Compared]) -> Differences:
    """Statistics over the tokens with the same ids; zeros where there are none."""
    parts = [one.difference for one in compared if len(one.cached)] or [np.zeros(1)]
    tokens = np.abs(np.concatenate(parts))
    sums = np.abs([float(part.sum()) for part in parts])
    return Differences(
        completions=len(compared),
        tokens=sum(len(one.cached) for one in compared),
        token_mean=float(tokens.mean()),
        token_p99=float(np.quantile(tokens, 0.99)),
        token_max=float(tokens.max()),
        sum_mean=float(sums.mean()),
        sum_max=float(sums.max()),
    )


def worst_token(compared: Sequence[Compared]) -> tuple[Compared, int] | None:
    """The completion and the position of the largest |difference|; None where no token was compared."""
    with_tokens = [one for one in compared if len(one.cached)]
    if not with_tokens:
        return None
    worst = max(with_tokens, key=lambda one: float(np.abs(one.difference).max()))
    return worst, int(np.abs(worst.difference).argmax())
