"""How prompt log-probs are asked of vLLM, and read from its answers.

What vLLM 0.32 does, from its source and from runs of it:

- `prompt_logprobs=0` is served by both of its model runners. V1 takes one request at a time, makes logits and float32
  log-softmax of all prompt positions in the step, and copies the token's own. Positions that came from the prefix cache are
  never written: they are uninitialised memory, finite, with token ids to match. Hence `skip_reading_prefix_cache`, and the
  comparison of ids here.
- `prompt_logprob_token_ids` with `prompt_logprob_start` scores the completion alone (no head for the prompt) without a
  float32 copy of the vocabulary. V2 alone does it, which needs Triton: V1 refuses the request (ValueError), as the CPU build
  without triton-cpu does. Scores of a prefill that starts behind the first row wanted are dropped, and come as None.

So a prefix cache is right for dense answers that start at the prompt's last token: a hit that ends before it leaves all rows to
compute, and one behind it (a completion that begins as another one did, a prompt of whole blocks) comes as None, and is asked
again without the cache. A preempted request begins anew in the V2 runner, and is treated alike.

The way is found by trying it on short texts when the engine starts (`trial`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_SKIP = "skip_reading_prefix_cache"


class MisalignedError(Exception):
    """An answer that does not belong to the tokens that were sent; the message says what came."""


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
    """Every position's own token: what any vLLM has."""

    def __init__(self, fields: frozenset[str]) -> None:
        self._asked: dict[str, Any] = {"prompt_logprobs": 0}
        if "flat_logprobs" in fields:  # arrays, where the other form has an object for each position
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
        # FlatLogprobs: one entry a position, none for the first
        if len(ids) != len(answer) - 1 or not np.array_equal(ids[-count:], completion):
            raise MisalignedError(
                f"{len(ids)} entries for {len(answer)} positions, of other tokens than those asked for"
            )
        return np.asarray(answer.logprobs[-count:], dtype=np.float32)


class Dense:
    """The completion alone, one column: row i is the prediction of token start + i + 1.

    Args:
        reads_cache: read the prompt from the prefix cache where it holds it.
    """

    def __init__(self, *, reads_cache: bool = False) -> None:
        self.reads_cache = reads_cache

    @staticmethod
    def known(fields: frozenset[str]) -> bool:
        """Whether this vLLM has the words for it; whether it does it, only asking tells."""
        return {"prompt_logprob_token_ids", "prompt_logprob_start"} <= fields

    @staticmethod
    def may_read_cache(fields: frozenset[str]) -> bool:
        """Whether this vLLM lets a request say that it reads the prefix cache."""
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
