"""Request prompt log-probs from vLLM, and read its answers.

The behaviour of vLLM 0.32, from its source and from runs of it:

- Both model runners support `prompt_logprobs=0`. V1 takes one request at a time, computes logits and float32 log-softmax of
  all prompt positions in the step, and copies each token's own. Positions from the prefix cache are never written: their
  log-probs and token ids are uninitialised memory with finite values. Hence `skip_reading_prefix_cache`, and the comparison of
  ids here.
- `prompt_logprob_token_ids` with `prompt_logprob_start` scores only the completion (no head for the prompt), without a float32
  copy of the vocabulary. Only V2 supports it, which needs Triton: V1 refuses the request (ValueError), and so does the CPU
  build without triton-cpu. Scores of a prefill that starts after the first requested row are dropped, and returned as None.

So a prefix cache is correct for dense answers that start at the prompt's last token: after a hit that ends before it, all rows
are computed; after a longer hit (a completion that begins like another one, a prompt of complete blocks) the answer is None, and
the request is repeated without the cache. The same holds for a preempted request, which starts again in the V2 runner.

The way to ask is found by a trial on short texts when the engine starts (`trial`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_SKIP = "skip_reading_prefix_cache"


class MisalignedError(Exception):
    """An answer that does not match the tokens that were sent; the message describes it."""


class UnwrittenError(MisalignedError):
    """An answer without log-probs, because the prefix cache held more than the prompt."""


class Answers(Protocol):
    """One way to ask for the log-probs of a text's last tokens."""

    def asked(self, ids: NDArray[np.int32], count: int) -> dict[str, Any]:
        """Fields of `SamplingParams` for the last `count` of `ids`."""
        ...

    def read(self, output: Any, completion: NDArray[np.int32]) -> NDArray[np.float32]:
        """(C,) log-probs in nats from vLLM's `RequestOutput`. Raises MisalignedError."""
        ...


class Listed:
    """Log-probs of each prompt position's own token; every vLLM supports this."""

    def __init__(self, fields: frozenset[str]) -> None:
        self._asked: dict[str, Any] = {"prompt_logprobs": 0}
        if "flat_logprobs" in fields:  # arrays instead of an object for each position
            self._asked["flat_logprobs"] = True

    def asked(self, ids: NDArray[np.int32], count: int) -> dict[str, Any]:
        return self._asked

    def read(self, output: Any, completion: NDArray[np.int32]) -> NDArray[np.float32]:
        count = len(completion)
        answer = output.prompt_logprobs
        ids = getattr(answer, "token_ids", None)
        if ids is None:  # a list of dictionaries
            rows = (answer or [])[-count:]
            try:
                found = [row[token].logprob for row, token in zip(rows, completion.tolist(), strict=True)]
            except (KeyError, TypeError, ValueError) as error:
                raise MisalignedError(f"{len(rows)} entries, not all of them of the tokens asked for") from error
            return np.asarray(found, np.float32)
        # FlatLogprobs: one entry per position, none for the first
        if len(ids) != len(answer) - 1 or not np.array_equal(ids[-count:], completion):
            raise MisalignedError(
                f"{len(ids)} entries for {len(answer)} positions, of other tokens than those asked for"
            )
        return np.asarray(answer.logprobs[-count:], dtype=np.float32)


class Dense:
    """Scores of the completion only, (C, 1): row i predicts token `prompt_logprob_start` + i + 1.

    Args:
        reads_cache: read the prompt from the prefix cache if it is there.
    """

    def __init__(self, *, reads_cache: bool = False) -> None:
        self.reads_cache = reads_cache

    @staticmethod
    def known(fields: frozenset[str]) -> bool:
        """Whether this vLLM has the fields of the request; only a trial shows whether it supports them."""
        return {"prompt_logprob_token_ids", "prompt_logprob_start"} <= fields

    @staticmethod
    def may_read_cache(fields: frozenset[str]) -> bool:
        """Whether a request to this vLLM can ask to read the prefix cache."""
        return Dense.known(fields) and _SKIP in fields

    def asked(self, ids: NDArray[np.int32], count: int) -> dict[str, Any]:
        start = len(ids) - count
        asked = {"prompt_logprob_token_ids": ids[start:, None], "prompt_logprob_start": start - 1}
        return asked | ({_SKIP: False} if self.reads_cache else {})

    def read(self, output: Any, completion: NDArray[np.int32]) -> NDArray[np.float32]:
        scores = getattr(output, "prompt_token_id_logprobs", None)
        if scores is None and self.reads_cache:
            raise UnwrittenError("no scores of a prompt that is cached beyond its first scored token")
        if scores is None or scores.shape != (len(completion), 1):
            raise MisalignedError(
                f"scores of shape {None if scores is None else scores.shape} for {len(completion)} tokens"
            )
        return np.array(scores[:, 0], dtype=np.float32)
