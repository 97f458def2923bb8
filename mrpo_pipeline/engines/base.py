"""The interface of all engines: token ids in, per-token log-probs of the completion out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mrpo_pipeline.errors import RunError, UserError

TRANSFORMERS_OPTIONS = ("device", "threads", "attn_implementation", "max_batch_tokens")
"""Options of the transformers engine; any other option is vLLM's."""

TokenIds = NDArray[np.int32]
LogProbs = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One completion to score, in one model's token ids.

    Attributes:
        prompt_ids: (P,) the tokens before the completion, with BOS if the model has one; at least one, because the last one
            predicts the completion's first.
        completion_ids: (C,) at least one token, with the end-of-turn token if it is scored.
        scored: (C,) False for tokens that are context and not scored; None: all are scored.
    """

    prompt_ids: TokenIds
    completion_ids: TokenIds
    scored: NDArray[np.bool_] | None = None

    @property
    def scored_ids(self) -> TokenIds:
        """(S,) the completion's scored tokens."""
        return self.completion_ids if self.scored is None else self.completion_ids[self.scored]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


class Engine(Protocol):
    """Runs a reference."""

    name: str
    """`transformers`, `vllm` or `served`."""
    context_length: int | None
    """The model's positions; prompt and completion together may take one less. None: no limit."""
    dtype: str
    """What the weights were loaded as: `float32`, `bfloat16`, …"""
    notices: list[str]
    """What to report to the user once: what was chosen, and why."""

    def score(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[int, LogProbs]]:
        """Yield (index into `requests`, (S,) float32 log-probs of its scored tokens in nats) as they are computed, long ones first.

        Raises:
            UserError: a request is empty, longer than the context allows, or holds an id outside the vocabulary.
            RunError: the engine failed, or a log-prob is not finite (the message names the request's index).
        """
        ...

    def close(self) -> None:
        """Free memory and end processes. May be called twice."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that computed the numbers, to record with them."""
        ...


def check_requests(requests: Sequence[ScoringRequest], context_length: int | None, vocab_size: int) -> None:
    """Refuse, before anything runs, a request that no engine can score. Raises UserError with the request's index."""
    for index, request in enumerate(requests):
        if not len(request.prompt_ids) or not len(request.scored_ids):
            side = "prompt" if not len(request.prompt_ids) else "completion"
            raise UserError(
                f"request {index}: its {side} has no tokens. Scoring needs at least one token before the completion "
                "(a BOS token will do) and one in it."
            )
        if context_length is not None and len(request) > context_length - 1:
            raise UserError(
                f"request {index}: {len(request.prompt_ids)} prompt and {len(request.completion_ids)} completion tokens "
                f"make {len(request)}, and a context of {context_length} holds {context_length - 1} at most. "
                "Lower limits.max_length, or leave this pair out."
            )
        for ids in (request.prompt_ids, request.completion_ids):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= vocab_size:
                raise UserError(
                    f"request {index}: token id {high if high >= vocab_size else low} is outside the model's vocabulary "
                    f"of {vocab_size}: expected the tokenizer that belongs to the model. Correct the reference's `tokenizer` or `model`."
                )


class NoServerError(UserError):
    """The server of a reference does not answer."""


class ImpossibleLogProbError(RunError):
    """An engine returned a number that is not a log-prob: ``index`` is the request's, ``told`` the rest of the message."""

    def __init__(self, index: int, told: str) -> None:
        self.index = index
        self.told = told
        super().__init__(f"request {index}: {told}")


def check_finite(index: int, request: ScoringRequest, logps: LogProbs) -> None:
    """Raise ImpossibleLogProbError if a log-prob is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(logps))
    if bad.size:
        place = int(bad[0])
        raise ImpossibleLogProbError(
            index,
            f"the log-prob of completion token {place} (id {int(request.scored_ids[place])}) is "
            f"{logps[place]}; {bad.size} of {logps.size} are not finite. A 16-bit dtype that overflows is the commonest "
            "cause: try dtype: bfloat16 or float32 for this reference. Weights that hold NaN give such numbers too.",
        )


def longest_first(requests: Sequence[ScoringRequest], among: Sequence[int] | None = None) -> list[int]:
    """Indices of the requests (or of ``among``), longest first, so that running out of memory shows at once and padding is small."""
    return sorted(range(len(requests)) if among is None else among, key=lambda index: -len(requests[index]))


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], engine: str) -> None:
    """Raise UserError for an unknown option, with the nearest known one."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"scoring.{name}: the {engine} engine has no such option, expected one of {', '.join(known)}.{hint} "
                "Correct it or take it out."
            )
