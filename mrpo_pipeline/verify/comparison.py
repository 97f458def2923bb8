"""One completion as the cache has it beside itself as computed again, and the figures over many. Pure arrays."""

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
    """A completion of which S leading tokens have the same ids in the cache and as rendered here.

    Attributes:
        completion_id: 32 hex digits.
        text: the canonical text of the whole completion.
        cached_prompt_tokens, prompt_tokens: tokens of the prompt by the cache, and as rendered here. (Of the prompt the
            cache keeps only that.)
        cached_ids: (C,) as the cache has them. ids: (D,) the scored tokens of the whole completion as rendered here, end-of-turn
            token last.
        complete: the cached row claims to be whole.
        byte_ends: (D,) of ``ids``, in the completion's bytes.
        cached: (S,) log-probs of the cache. again: (S,) computed again. Nats.
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
    again: npt.NDArray[np.float32]

    @property
    def ids_agree(self) -> bool:
        """Whether the cached ids are those of this text: all of them where the row is complete, else its beginning."""
        return len(self.cached) == len(self.cached_ids) and self.complete == (len(self.cached_ids) == len(self.ids))

    @property
    def same_text(self) -> bool:
        """Whether ids and the prompt's length are what they are here."""
        return self.ids_agree and self.cached_prompt_tokens == self.prompt_tokens

    @cached_property
    def difference(self) -> Floats:
        """(S,) cached − computed again."""
        return self.cached.astype(np.float64) - self.again.astype(np.float64)

    def token_text(self, place: int) -> str:
        """What the token stands for in the completion; empty for the end-of-turn token."""
        if place == len(self.ids) - 1:
            return ""
        start = int(self.byte_ends[place - 1]) if place else 0
        return self.text.encode()[start : int(self.byte_ends[place])].decode(errors="replace")


@dataclass(frozen=True)
class Figures:
    """|cached − computed again| in nats: over all tokens, and over the completions' sums."""

    completions: int
    tokens: int
    token_mean: float
    token_p99: float
    token_max: float
    sum_mean: float
    sum_max: float


def figures(compared: Sequence[Compared]) -> Figures:
    """The figures over the tokens that have the same ids; zeros where there are none."""
    parts = [one.difference for one in compared if len(one.cached)]
    if not parts:
        return Figures(len(compared), 0, 0.0, 0.0, 0.0, 0.0, 0.0)
    tokens = np.abs(np.concatenate(parts))
    sums = np.abs([float(part.sum()) for part in parts])
    return Figures(
        completions=len(compared),
        tokens=len(tokens),
        token_mean=float(tokens.mean()),
        token_p99=float(np.quantile(tokens, 0.99)),
        token_max=float(tokens.max()),
        sum_mean=float(sums.mean()),
        sum_max=float(sums.max()),
    )


def worst_token(compared: Sequence[Compared]) -> tuple[Compared, int] | None:
    """The completion and the place in it of the largest |difference|; None where no token was compared."""
    with_tokens = [one for one in compared if len(one.cached)]
    if not with_tokens:
        return None
    worst = max(with_tokens, key=lambda one: float(np.abs(one.difference).max()))
    return worst, int(np.abs(worst.difference).argmax())
