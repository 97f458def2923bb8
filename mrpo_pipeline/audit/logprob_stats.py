"""What one reference's own numbers look like, token by token. No other reference and no model is needed.

Each figure is made so that it means the same for a tiny model and for a large one: shares, ratios, ranks, or nats against
what the tokens' own frequencies would cost. What a sound language model shows, whatever its skill:

- The same words after the same prompt have the same log-probs. Numbers that depend on what stood beside them in a batch do not.
- Log-probs go with the tokens they belong to: the token's identity explains them far better than once they are dealt out
  anew among completions of the same length.
- A model that predicts a text at all predicts its first token no worse than a table of first tokens would.
- Float32 numbers nearly all differ, and fill their 24 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mrpo_pipeline.audit.sample import Bools, Floats, Ints, Texts, Tokens
from mrpo_pipeline.audit.statistics import (
    NONE,
    effective_kinds,
    entropy,
    larger_within,
    mean_error,
    share_explained,
    surprise_against_shuffles,
)

# Below this, float32 log-probs come in steps of their own (probabilities next to 1).
_NEAR_ZERO = 1e-2
_POSSIBLE = 1e-3  # nats above 0 that rounding in an engine may reach
# A first or last token at this share of what the same token costs at the median counts as an easy one.
_EASY, _TIMES = 0.5, 3
# A place at which one token makes up more than this share is the same in all texts.
_SAME = 0.9


@dataclass(frozen=True)
class Patterns:
    """Figures of the sampled completions of one reference; NaN for what they do not tell.

    Attributes:
        completions, prompts, tokens: looked at; end-of-turn tokens are not among the tokens.
        nats_per_byte: of the text, the end-of-turn token left out.
        byte_entropy: nats per byte that a table of these texts' own byte frequencies would spend.
        first, rest, last: mean nats of the first token, the other tokens of the text, the end-of-turn token.
        first_over_table, rest_over_table: mean nats over what a table of the tokens' own frequencies (first tokens; others)
            would cost. Below 0 the model knows more than the table. ``first_error`` is the standard error of the first, with the
            completions that begin alike as one cluster; ``first_kinds`` is how many beginnings there are in effect (1 over the
            chance that two completions begin with the same token).
        first_over_text: mean nats of the first token over what a table of all the text's tokens would cost: what a model that
            knows words but no context would pay, whatever stands before.
        spread: standard deviation of the log-probs over their mean size.
        by_place: share of their variance that the token's number in its completion explains, over places at which texts differ:
            answers that all run alike are explained by the place in a sound model too.
        zeros, near_zeros: shares of log-probs that are exactly 0, or within 0.001 of it.
        bits: significant bits that all but a twentieth of the log-probs do with; 24 in float32.
        distinct: distinct values per log-prob, of one completion for each prompt.
        belonging: how far the token's identity explains the log-probs better than once they are dealt out anew among tokens
            of the same place, in standard deviations; about 0 where they belong to other texts. ``belonging_alike``: among
            tokens of the same place in completions of the same length, of which there are ``alike``.
        shared: pairs of completions of one prompt that begin with the same tokens; ``shared_apart``: the share of them whose
            shared tokens differ by more than rounding.
        first_easy, first_by_prompt: share of completions whose first token costs less than half of what the same token costs
            at the median, and how often their prompts are longer than those of others that begin alike; 0.5 is no relation.
        last_easy, last_by_length: the same of the end-of-turn token and the whole length in tokens, among completions whose last
            token of text is the same: of two kinds of texts the one that is ended more readily may be the longer one.
    """

    completions: int
    prompts: int
    tokens: int
    nats_per_byte: float
    byte_entropy: float
    first: float
    rest: float
    last: float
    first_over_table: float
    first_error: float
    first_kinds: float
    rest_over_table: float
    first_over_text: float
    spread: float
    by_place: float
    zeros: float
    near_zeros: float
    bits: float
    distinct: float
    belonging: float
    belonging_alike: float
    alike: int
    shared: int
    shared_apart: float
    first_easy: float
    first_by_prompt: float
    last_easy: float
    last_by_length: float


def patterns_of(tokens: Tokens, texts: Texts, rounding: float) -> Patterns:
    """The figures of one reference.

    Args:
        tokens: its sampled tokens.
        texts: the sampled completions.
        rounding: nats within which two right computations of a token may lie apart, by the reference's dtype.
    """
    inner = tokens.inner
    nats = -tokens.logps[inner].astype(np.float64)
    ids, row, place = tokens.ids[inner].astype(np.int64), tokens.row[inner], tokens.place[inner]
    closing = -tokens.logps[tokens.closing].astype(np.float64)
    first = place == 0
    lengths = np.bincount(row, minlength=len(texts))
    size = nats.mean() if len(nats) else NONE
    prompts = _groups(texts)
    shared, apart = _shared_beginnings(tokens, prompts, rounding)
    total = tokens.prompt_tokens + lengths
    easy = [
        _easy_by(nats[first], ids[first], tokens.prompt_tokens[row[first]]),
        _easy_by(closing, _before(tokens), total[tokens.row[tokens.closing]]),
    ]
    bits, distinct = _steps(tokens, prompts)
    strata = lengths[row] * (place.max(initial=0) + 1) + place
    # Where texts of one length all hold the same token, dealing out its numbers anew changes nothing that could be seen.
    varied = _varied(ids, strata)
    return Patterns(
        completions=len(texts),
        prompts=len(np.unique(prompts)),
        tokens=len(nats),
        nats_per_byte=float(nats.sum() / len(texts.joined)) if len(texts.joined) else NONE,
        byte_entropy=entropy(texts.joined) if len(texts.joined) else NONE,
        first=_mean(nats[first]),
        rest=_mean(nats[~first]),
        last=_mean(closing),
        first_over_table=_over_table(nats[first], ids[first]),
        first_error=mean_error(nats[first], ids[first]),
        first_kinds=effective_kinds(ids[first]),
        rest_over_table=_over_table(nats[~first], ids[~first]),
        first_over_text=_over_text(nats[first], ids[first], ids),
        spread=float(nats.std() / size) if len(nats) and size > 0 else NONE,
        by_place=_by_place(nats, ids, place),
        zeros=_mean(nats == 0),
        near_zeros=_mean((nats > 0) & (nats < _POSSIBLE)),
        bits=bits,
        distinct=distinct,
        belonging=surprise_against_shuffles(nats, ids, place),
        alike=_alike(strata[varied]),
        belonging_alike=surprise_against_shuffles(nats[varied], ids[varied], strata[varied], at_least=100),
        shared=shared,
        shared_apart=apart,
        first_easy=easy[0][0],
        first_by_prompt=easy[0][1],
        last_easy=easy[1][0],
        last_by_length=easy[1][1],
    )


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else NONE


def _over_table(nats: Floats, ids: Ints) -> float:
    return float(nats.mean() - entropy(ids)) if len(nats) else NONE


def _over_text(nats: Floats, ids: Ints, text: Ints) -> float:
    """Nats over the cost by the frequencies of all tokens of the text; half a count is added to each."""
    if not len(nats):
        return NONE
    kinds, counts = np.unique(text, return_counts=True)
    cost = -np.log((counts + 0.5) / (counts + 0.5).sum())
    return float((nats - cost[np.searchsorted(kinds, ids)]).mean())


def _alike(strata: Ints) -> int:
    """Tokens that share their stratum with others."""
    _, counts = np.unique(strata, return_counts=True)
    return int(counts[counts > 1].sum())


def _groups(texts: Texts) -> Ints:
    """(R,) the same number for completions of one prompt."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(prompt, len(numbers)) for prompt in texts.frame["prompt"].to_list()]
    return np.array(found, dtype=np.int64)


def _shared_beginnings(tokens: Tokens, prompts: Ints, rounding: float) -> tuple[int, float]:
    """Neighbours of one prompt that begin alike, and the share of them whose numbers do not."""
    order = np.argsort(prompts, kind="stable")
    count = apart = 0
    for one, other in pairwise(order.tolist()):
        if prompts[one] != prompts[other] or tokens.prompt_tokens[one] != tokens.prompt_tokens[other]:
            continue
        low, top = tokens.starts[one], tokens.starts[other]
        length = min(tokens.starts[one + 1] - low, tokens.starts[other + 1] - top)
        differ = np.flatnonzero(tokens.ids[low : low + length] != tokens.ids[top : top + length])
        length = int(differ[0]) if len(differ) else int(length)
        if length:
            count += 1
            gaps = np.abs(tokens.logps[low : low + length] - tokens.logps[top : top + length])
            apart += bool(gaps.max() > rounding)
    return count, apart / count if count else NONE


def _easy_by(nats: Floats, ids: Ints, length: Ints) -> tuple[float, float]:
    """The share of easy tokens, of those whose id comes ``_TIMES`` times or more, and how often these go with length among tokens
    of the same id."""
    kinds, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    often = counts[inverse] >= _TIMES
    if not often.any():
        return NONE, NONE
    usual = np.array([np.median(nats[inverse == kind]) for kind in range(len(kinds))])
    easy = nats[often] < _EASY * usual[inverse[often]]
    return float(easy.mean()), larger_within(length[often], easy, inverse[often])


def _before(tokens: Tokens) -> Ints:
    """The id before each end-of-turn token; −1 where it has no text before it."""
    at = np.flatnonzero(tokens.closing)
    result: Ints = np.where(tokens.place[at] > 0, tokens.ids[at - 1].astype(np.int64), -1)
    return result


def _by_place(nats: Floats, ids: Ints, place: Ints) -> float:
    """The share of the variance that the place explains, over places at which no one token is nearly all there is."""
    varied = _varied(ids, place)
    return share_explained(nats[varied], place[varied]) if varied.any() else NONE


def _varied(ids: Ints, strata: Ints) -> Bools:
    """(T,) whether the stratum of a token holds several, none of which is nearly all of it."""
    _, inverse = np.unique(strata, return_inverse=True)
    _, kinds, counts = np.unique(np.stack([inverse, ids]), axis=1, return_inverse=True, return_counts=True)
    sizes = np.bincount(inverse)
    most = np.zeros(len(sizes), dtype=np.int64)
    np.maximum.at(most, inverse, counts[kinds.reshape(-1)])
    result: Bools = (most <= _SAME * sizes)[inverse]
    return result


def _steps(tokens: Tokens, prompts: Ints) -> tuple[float, float]:
    """Significant bits, and distinct values per log-prob.

    One completion of each prompt alone: those of one prompt share beginnings, and with them numbers.
    """
    _, chosen = np.unique(prompts, return_index=True)
    mine = tokens.inner & np.isin(tokens.row, chosen)
    sizes = np.abs(tokens.logps[mine])
    sizes = sizes[sizes > _NEAR_ZERO].astype(np.float32)
    if not len(sizes):
        return NONE, NONE
    significand = (sizes.view(np.uint32) & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
    lowest = significand & (~significand + np.uint32(1))  # the lowest bit that is set
    bits = 24 - np.log2(lowest.astype(np.float64))
    return float(np.quantile(bits, 0.95)), len(np.unique(sizes)) / len(sizes)
