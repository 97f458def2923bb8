"""Request prompt log-probs from a vLLM server, and read its answers.

From vLLM 0.32's source and from runs of it: `POST /inference/v1/generate` (`vllm serve --enable-scale-out`, or `--tokens-only`)
takes token ids and the fields of `SamplingParams`; `POST /v1/completions` takes ids as its prompt, on any vLLM. Both list the
log-probs of all prompt positions as JSON; the first also gives those of the completion alone, as the bytes of a .npy file, where
the server's model runner can (`prompt_logprob_token_ids`). A log-prob of -inf comes as -9999 in a list.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mrpo_pipeline.engines.base import LogProbs, TokenIds

_NO_PROBABILITY = -9999.0  # what vLLM writes for -inf, which JSON has no number for


class MisreadError(Exception):
    """An answer that does not match the tokens sent; the message describes it."""


class Way(Protocol):
    """One way to request the log-probs of a text's last tokens."""

    route: str

    def body(self, model: str, ids: TokenIds, count: int) -> dict[str, Any]:
        """The request for the last ``count`` of (T,) ids."""
        ...

    def read(self, answer: Any, ids: TokenIds, count: int) -> LogProbs:
        """(count,) log-probs in nats. Raises MisreadError."""
        ...


class Completions:
    """Token ids as the prompt of a completion of one token, whose log-probs are listed.

    Args:
        others: how many of the likeliest other tokens are listed at each position as well.
    """

    route = "/v1/completions"

    def __init__(self, others: int = 0) -> None:
        self._others = others

    def body(self, model: str, ids: TokenIds, count: int) -> dict[str, Any]:
        return {
            "model": model, "prompt": ids.tolist(), "max_tokens": 1, "temperature": 0.0,
            "prompt_logprobs": self._others, "return_token_ids": True,
        }  # fmt: skip

    def read(self, answer: Any, ids: TokenIds, count: int) -> LogProbs:
        own = [
            row.get(str(one)) for row, one in zip(self.listed(answer, ids, count), ids[-count:].tolist(), strict=True)
        ]
        if None in own:
            raise MisreadError("log-probs of other tokens than those that were sent")
        logps = np.array(own, np.float32)
        return np.where(logps <= _NO_PROBABILITY, np.float32(-np.inf), logps)

    def listed(self, answer: Any, ids: TokenIds, count: int) -> list[dict[str, float]]:
        """The lists at the last ``count`` positions: token id → log-prob. Raises MisreadError."""
        holder = self._holder(answer)
        _require_ids(holder, ids)
        rows = holder.get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(ids):
            found = len(rows) if isinstance(rows, list) else "no list"
            raise MisreadError(f"prompt_logprobs of {found} positions for {len(ids)} tokens")
        try:
            return [{one: float(said["logprob"]) for one, said in row.items()} for row in rows[-count:]]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise MisreadError("prompt_logprobs without a log-prob at each position") from None

    def _holder(self, answer: Any) -> Mapping[str, Any]:
        """The part of the answer that holds the prompt's log-probs."""
        choices = _mapping(answer).get("choices")
        if not isinstance(choices, list) or len(choices) != 1:
            raise MisreadError("an answer without exactly one choice")
        return _mapping(choices[0])


class Generate(Completions):
    """Token ids in, a list of the log-probs of all prompt positions out."""

    route = "/inference/v1/generate"

    def body(self, model: str, ids: TokenIds, count: int) -> dict[str, Any]:
        return _generate(model, ids, {"prompt_logprobs": self._others})

    def _holder(self, answer: Any) -> Mapping[str, Any]:
        return _mapping(answer)


class Dense:
    """Token ids in, only the completion's log-probs out."""

    route = Generate.route

    def body(self, model: str, ids: TokenIds, count: int) -> dict[str, Any]:
        start = len(ids) - count
        columns = ids[start:, None].tolist()
        return _generate(model, ids, {"prompt_logprob_token_ids": columns, "prompt_logprob_start": start - 1})

    def read(self, answer: Any, ids: TokenIds, count: int) -> LogProbs:
        holder = _mapping(answer)
        if "prompt_token_ids" not in holder:
            raise MisreadError("an answer without the token ids that it is of")
        _require_ids(holder, ids)
        try:
            data = base64.b64decode(holder.get("prompt_token_id_logprobs") or "", validate=True)
            scores: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
            logps = scores.astype(np.float32)
        except (binascii.Error, TypeError, ValueError, EOFError, OSError):
            raise MisreadError("no array of log-probs") from None
        if logps.shape != (count, 1):
            raise MisreadError(f"log-probs of shape {logps.shape} for {count} tokens")
        return logps[:, 0]


def _generate(model: str, ids: TokenIds, asked: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {"max_tokens": 1, "temperature": 0.0, "detokenize": False, **asked}
    return {"model": model, "token_ids": ids.tolist(), "sampling_params": parameters, "return_token_ids": True}


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MisreadError("no JSON object")
    return value


def _require_ids(holder: Mapping[str, Any], ids: TokenIds) -> None:
    """Raise MisreadError if the server reports other token ids than those sent."""
    said = holder.get("prompt_token_ids")
    if said is not None and said != ids.tolist():
        raise MisreadError(f"an answer to other token ids than the {len(ids)} that were sent")
