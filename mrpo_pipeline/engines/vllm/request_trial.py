"""Decide how to ask a vLLM engine for prompt log-probs, by a trial on short texts after its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrpo_pipeline.engines.vllm.adapters import UnsupportedError
from mrpo_pipeline.engines.vllm.logprobs import Answers, Dense, MisalignedError, UnwrittenError
from mrpo_pipeline.errors import RunError

if TYPE_CHECKING:
    from mrpo_pipeline.engines.vllm.scorer import Scorer

Ids = NDArray[np.int32]
LogProbs = NDArray[np.float32]

# Mean difference in nats per token within which two ways to compute one model agree. If part of the model is left out, or a row is
# off by one, the difference is larger.
SAME = {"float32": 0.01, "float64": 0.01}
SAME_IN_16_BIT = 0.25


def try_out(scorer: Scorer, ids: Ids, expected: list[float] | None, dense: bool) -> None:
    """Score a short text, so that failures show at the start; use the dense way if it gives the same log-probs.

    Args:
        ids: (T,) the text. expected: (T - 1,) its log-probs by transformers, if the adapter was merged.
        dense: whether this vLLM has the fields of the dense way.

    Raises:
        UnsupportedError: vLLM leaves out part of what was merged.
    """
    _add_text(scorer, ids)
    try:
        usual = _text_answered(scorer)
    except MisalignedError as error:
        raise RunError(f"vLLM's prompt log-probs of a short text cannot be right: {error}.") from None
    if expected is not None and (apart := _apart(usual, np.array(expected))) > scorer.same:
        raise UnsupportedError(
            f"with the adapter merged, vLLM and transformers are {apart:.2g} nats per token apart on a short text: vLLM "
            "leaves part of the merged model out (a head that differs from the embeddings, say)"
        )
    if not dense:
        return
    scorer.answers = Dense()
    try:
        _add_text(scorer, ids)
    except Exception:  # the model runner in use refuses the request, by a class that differs between versions
        scorer.answers = scorer.usual
        return
    try:
        apart = _apart(_text_answered(scorer), usual)
    except MisalignedError as error:
        scorer.leave_dense(str(error))
    else:
        if apart > scorer.same:
            scorer.leave_dense(f"it is {apart:.2g} nats per token away from the usual answer")


def try_prefix_cache(scorer: Scorer, ids: Ids, block: int) -> None:
    """Read prompts from the prefix cache if a prompt's second completion then gets the same log-probs.

    The prompt ends one token after its first block, so that a hit ends right at the first scored row. A text that is cached
    beyond its prompt must return no log-probs, or the correct ones.

    Args:
        ids: (T,) token ids to make texts of. block: tokens in a block of the cache.
    """
    length = 2 * block + 2
    if length >= scorer.max_model_len:
        return
    text = np.random.default_rng(0).choice(ids, length).astype(np.int32)
    other = np.concatenate([text[: block + 1], np.roll(text[block + 1 :], 1)])
    count = length - block - 1
    reading, fresh = Dense(reads_cache=True), Dense()
    try:
        _alone(scorer, text, count, fresh)
        (found, hit), (expected, _), (again, _) = (
            _alone(scorer, other, count, way) for way in (reading, fresh, reading)
        )
    except MisalignedError as error:
        why = str(error)
    else:
        if not hit:
            why = "the second completion of a prompt finds nothing in it"
        elif expected is None or found is None or not _apart(found, expected) <= scorer.same:
            why = "the second completion of a prompt gets other log-probs by it"
        elif again is not None and not _apart(again, expected) <= scorer.same:
            why = "a completion that is in it gets other log-probs"
        else:
            scorer.answers = reading
            return
    scorer.notices.append(f"vLLM's prefix cache is not used: {why}")


def _alone(scorer: Scorer, ids: Ids, count: int, way: Answers) -> tuple[LogProbs | None, int]:
    """(log-probs of one request, None if vLLM returned none; number of its tokens read from the cache)."""
    scorer.add(0, ids, count, way)
    while not (finished := scorer.finished()):
        pass
    ((asked, output),) = finished
    hit = int(getattr(output, "num_cached_tokens", None) or 0)
    try:
        return asked.read(output), hit
    except UnwrittenError:
        return None, hit


def _apart(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    return float(np.abs(one - other).mean())


def _add_text(scorer: Scorer, ids: Ids) -> None:
    """Add the text and its first half: two requests in one step, as in scoring."""
    scorer.add(0, ids, len(ids) - 1)
    scorer.add(1, ids[: len(ids) // 2], len(ids) // 2 - 1)


def _text_answered(scorer: Scorer) -> LogProbs:
    """(T - 1,) log-probs of the text. Raises MisalignedError, also if those of its half differ."""
    found: dict[int, LogProbs] = {}
    while scorer.in_flight:
        found |= {asked.index: asked.read(output) for asked, output in scorer.finished()}
    whole, half = found[0], found[1]
    apart = _apart(whole[: len(half)], half)
    if not apart <= scorer.same:
        raise MisalignedError(
            f"those of its first half, scored beside it, are {apart:.2g} nats per token away, as where a model sees what follows "
            "(a masked or bidirectional one) or log-probs are given to other tokens than theirs"
        )
    return whole
