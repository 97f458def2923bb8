"""Statistics of one reference's log-probs, token by token. Uses no other reference and no model.

All are comparable between tiny and large models: shares, ratios, ranks, or nats relative to unigram frequencies. Of a sound
language model, however weak, these hold:

- The same tokens after the same prompt have the same log-probs, whatever else is in the batch.
- Log-probs depend on their tokens: the token explains them far better than when they are permuted among completions of one length.
- A model that predicts a text predicts its first token at least as well as the frequencies of first tokens.
- Float32 log-probs are nearly all distinct and use their 24 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mrpo_pipeline.audit.sampled_tokens import Bools, Floats, Ints, Texts, Tokens
from mrpo_pipeline.audit.statistics import (
    NAN,
    auc_within,
    clustered_error,
    effective_count,
    entropy,
    permutation_z,
    share_explained,
)

# Nats below which float32 log-probs are coarse even if sound: probabilities next to 1 have few distinct values.
_NEAR_ZERO = 1e-2
_NEARLY_CERTAIN = 1e-3  # nats
# A first or last token is easy at less than this share of the median cost of the same token, which has to occur this often.
_EASY, _TIMES = 0.5, 3
# Positions at which one token has more than this share are the same in all texts.
_SAME = 0.9


@dataclass(frozen=True)
class LogprobStats:
    """Statistics of the sampled completions of one reference; NaN where there are too few.

    Attributes:
        completions, prompts, tokens: sampled; without end-of-turn tokens.
        nats_per_byte: of the text, without the end-of-turn token.
        byte_entropy: nats per byte by the byte frequencies of these texts.
        first, rest, last: mean nats of the first token, the other tokens of the text, the end-of-turn token.
        first_over_unigram, rest_over_unigram: mean nats above the entropy of the first tokens', or other tokens', frequencies; below 0
            the model knows more than these.
        first_error: standard error of the mean over first tokens, completions with the same one as a cluster.
        first_variety: effective number of first tokens.
        first_over_text: mean nats of the first token above its cost by the frequencies of all the text's tokens: about 0 for a
            model that knows words but no context.
        relative_std: standard deviation of the log-probs over their mean size.
        by_position: share of their variance that the position in the completion explains, over positions at which texts differ.
        zeros, near_zeros: shares of log-probs that are exactly 0, or within 0.001 of it.
        significant_bits: that 19 in 20 log-probs need at most; 24 in float32.
        distinct: distinct values per log-prob, over one completion per prompt.
        dependence: how far the token explains the log-probs better than when they are permuted among tokens of one position, in standard
            deviations; about 0 for log-probs of other texts. dependence_same_length: the same, permuted among tokens of one position
            in completions of one length (``same_length_tokens`` tokens).
        shared_prefixes: pairs of completions of one prompt that begin with the same tokens. inconsistent: the share of them whose
            log-probs there differ by more than rounding.
        first_easy: share of completions whose first token costs less than half the median of that token. first_auc_prompt: AUC of
            this against the prompt's length, among completions with the same first token.
        last_easy, last_auc_length: the same for the end-of-turn token and the whole length, among completions with the same last
            token of text: of two kinds of texts, the one that ends more readily may be the longer one.
    """

    completions: int
    prompts: int
    tokens: int
    nats_per_byte: float
    byte_entropy: float
    first: float
    rest: float
    last: float
    first_over_unigram: float
    first_error: float
    first_variety: float
    rest_over_unigram: float
    first_over_text: float
    relative_std: float
    by_position: float
    zeros: float
    near_zeros: float
    significant_bits: float
    distinct: float
    dependence: float
    dependence_same_length: float
    same_length_tokens: int
    shared_prefixes: int
    inconsistent: float
    first_easy: float
    first_auc_prompt: float
    last_easy: float
    last_auc_length: float


def logprob_stats(tokens: Tokens, texts: Texts, rounding: float) -> LogprobStats:
    """The statistics of one reference.

    Args:
        rounding: nats by which two correct computations of a token may differ, by the reference's dtype.
    """
    inner = ~tokens.end_of_turn
    nats = -tokens.logps[inner].astype(np.float64)
    ids, row, position = tokens.ids[inner].astype(np.int64), tokens.row[inner], tokens.position[inner]
    ends = -tokens.logps[tokens.end_of_turn].astype(np.float64)
    first = position == 0
    lengths = np.bincount(row, minlength=len(texts))
    prompts = texts.frame["prompt"].rank("dense").to_numpy().astype(np.int64)
    shared, inconsistent = _shared_prefixes(tokens, prompts, rounding)
    total = tokens.prompt_tokens + lengths
    first_easy, first_auc = _easy_by_length(nats[first], ids[first], tokens.prompt_tokens[row[first]])
    last_easy, last_auc = _easy_by_length(ends, _last_text_token(tokens), total[tokens.row[tokens.end_of_turn]])
    bits, distinct = _bits_and_distinct(tokens, prompts)
    strata = lengths[row] * (position.max(initial=0) + 1) + position
    # Where all texts of one length have the same token, permuting its log-probs changes nothing.
    varied = _varied(ids, strata)
    mean = nats.mean() if len(nats) else NAN
    return LogprobStats(
        completions=len(texts),
        prompts=len(np.unique(prompts)),
        tokens=len(nats),
        nats_per_byte=float(nats.sum() / len(texts.joined)) if len(texts.joined) else NAN,
        byte_entropy=entropy(texts.joined) if len(texts.joined) else NAN,
        first=_mean(nats[first]),
        rest=_mean(nats[~first]),
        last=_mean(ends),
        first_over_unigram=_over_unigram(nats[first], ids[first]),
        first_error=clustered_error(nats[first], ids[first]),
        first_variety=effective_count(ids[first]),
        rest_over_unigram=_over_unigram(nats[~first], ids[~first]),
        first_over_text=_over_text(nats[first], ids[first], ids),
        relative_std=float(nats.std() / mean) if len(nats) and mean > 0 else NAN,
        by_position=_by_position(nats, ids, position),
        zeros=_mean(nats == 0),
        near_zeros=_mean((nats > 0) & (nats < _NEARLY_CERTAIN)),
        significant_bits=bits,
        distinct=distinct,
        dependence=permutation_z(nats, ids, position),
        dependence_same_length=permutation_z(nats[varied], ids[varied], strata[varied], at_least=100),
        same_length_tokens=_in_groups(strata[varied]),
        shared_prefixes=shared,
        inconsistent=inconsistent,
        first_easy=first_easy,
        first_auc_prompt=first_auc,
        last_easy=last_easy,
        last_auc_length=last_auc,
    )


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else NAN


def _over_unigram(nats: Floats, ids: Ints) -> float:
    return float(nats.mean() - entropy(ids)) if len(nats) else NAN


def _over_text(nats: Floats, ids: Ints, text: Ints) -> float:
    """Mean nats above the cost by the frequencies of the text's tokens, with half a count added to each."""
    if not len(nats):
        return NAN
    kinds, counts = np.unique(text, return_counts=True)
    cost = -np.log((counts + 0.5) / (counts + 0.5).sum())
    return float((nats - cost[np.searchsorted(kinds, ids)]).mean())


def _in_groups(strata: Ints) -> int:
    """Number of tokens that share their stratum with others."""
    _, counts = np.unique(strata, return_counts=True)
    return int(counts[counts > 1].sum())


def _shared_prefixes(tokens: Tokens, prompts: Ints, rounding: float) -> tuple[int, float]:
    """Neighbouring completions of one prompt with a common prefix, and the share of them whose log-probs differ in it."""
    order = np.argsort(prompts, kind="stable")
    count = differing = 0
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
            differing += bool(gaps.max() > rounding)
    return count, differing / count if count else NAN


def _easy_by_length(nats: Floats, ids: Ints, length: Ints) -> tuple[float, float]:
    """The share of easy tokens among those whose id occurs ``_TIMES`` times or more, and the AUC of being easy against the length."""
    kinds, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    often = counts[inverse] >= _TIMES
    if not often.any():
        return NAN, NAN
    usual = np.array([np.median(nats[inverse == kind]) for kind in range(len(kinds))])
    easy = nats[often] < _EASY * usual[inverse[often]]
    return float(easy.mean()), auc_within(length[often], easy, inverse[often])


def _last_text_token(tokens: Tokens) -> Ints:
    """The id before each end-of-turn token; −1 where there is no text."""
    at = np.flatnonzero(tokens.end_of_turn)
    result: Ints = np.where(tokens.position[at] > 0, tokens.ids[at - 1].astype(np.int64), -1)
    return result


def _by_position(nats: Floats, ids: Ints, position: Ints) -> float:
    """The share of the variance that the position explains, over positions at which texts differ."""
    varied = _varied(ids, position)
    return share_explained(nats[varied], position[varied]) if varied.any() else NAN


def _varied(ids: Ints, strata: Ints) -> Bools:
    """(T,) whether no token has nearly all of the stratum."""
    _, inverse = np.unique(strata, return_inverse=True)
    _, kinds, counts = np.unique(np.stack([inverse, ids]), axis=1, return_inverse=True, return_counts=True)
    sizes = np.bincount(inverse)
    most = np.zeros(len(sizes), dtype=np.int64)
    np.maximum.at(most, inverse, counts[kinds.reshape(-1)])
    result: Bools = (most <= _SAME * sizes)[inverse]
    return result


def _bits_and_distinct(tokens: Tokens, prompts: Ints) -> tuple[float, float]:
    """Significant bits, and distinct values per log-prob, over one completion per prompt: those of one prompt share prefixes."""
    _, chosen = np.unique(prompts, return_index=True)
    mine = ~tokens.end_of_turn & np.isin(tokens.row, chosen)
    sizes = np.abs(tokens.logps[mine])
    sizes = sizes[sizes > _NEAR_ZERO].astype(np.float32)
    if not len(sizes):
        return NAN, NAN
    significand = (sizes.view(np.uint32) & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
    lowest = significand & (~significand + np.uint32(1))  # the lowest set bit
    bits = 24 - np.log2(lowest.astype(np.float64))
    return float(np.quantile(bits, 0.95)), len(np.unique(sizes)) / len(sizes)
