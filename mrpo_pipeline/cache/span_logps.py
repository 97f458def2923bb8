"""Log-probs of several references per span, between the byte ends that all of them share.

Stored in a derived file beside the first reference's sums. Its name holds a digest of that reference's shards, a digest of all
references' shards and of the request, and the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mrpo_pipeline.cache.sequence_logps import Counted, Ints, derived_tables, each_serving_row, keep_derived
from mrpo_pipeline.cache.storage import Storage
from mrpo_pipeline.targets.spans import Spans

SPANS = "spans"

# Part of every key: increase it when spans are computed differently.
_METHOD = "mrpo spans 1"

# Positions after every byte of a completion: for tokens that count after the last shared byte end, and for the end-of-turn token.
_REST = np.iinfo(np.int32).max - 1
_END_OF_TURN = np.iinfo(np.int32).max
_STRIDE = 1 << 31


@dataclass(frozen=True, slots=True)
class CountedTokens:
    """The tokens of M completions that count, T in all."""

    lengths: Ints
    """(M,) number of tokens of each completion."""
    ends: npt.NDArray[np.int32]
    """(T,) byte ends; that of an end-of-turn token is larger than all others."""
    logps: npt.NDArray[np.float32]
    """(T,) nats."""


def spans_key(shards: Sequence[str], wanted: str) -> str:
    """Digest of the shards of every reference, in order, and of the request, 32 hex digits."""
    return hashlib.sha256("\n".join([_METHOD, *shards, wanted]).encode()).hexdigest()[:32]


def counted_tokens(storage: Storage, serving: pl.DataFrame) -> CountedTokens:
    """The tokens that count in the rows of ``serving`` (see ``build_sums``), in its order."""
    found: list[tuple[Ints, Ints, npt.NDArray[np.int32], npt.NDArray[np.float32]]] = []
    lengths = np.zeros(serving.height, np.int64)
    lock = Lock()

    def keep(at: Ints, counted: Counted) -> None:
        ends = np.where(counted.ends_turn, np.int32(_END_OF_TURN), counted.byte_ends)[counted.counts]
        part = (at, counted.per_row(), ends, counted.logps[counted.counts])
        with lock:
            lengths[at] = part[1]
            found.append(part)

    each_serving_row(storage, serving, keep)
    starts = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    tokens = CountedTokens(lengths, np.empty(total, np.int32), np.empty(total, np.float32))
    for at, own, ends, logps in found:
        place = np.arange(len(ends)) + np.repeat(starts[at] - (np.cumsum(own) - own), own)
        tokens.ends[place], tokens.logps[place] = ends, logps
    return tokens


def build_spans(tokens: Sequence[CountedTokens]) -> Spans:
    """The log-probs of M completions by K references between the byte ends that all of them share, up to the cut.

    Tokens that end at a shared byte end belong to the span that it closes (there may be several, as those of one emoji). Tokens after the
    last shared end form a span, and so does the end-of-turn token.

    Args:
        tokens: of each reference, with the same completions in the same order.
    """
    completions = len(tokens[0].lengths)
    keys = [_keys(one) for one in tokens]  # (T_k,) completion and byte end, ascending
    shared = _distinct(keys[0])
    for other in keys[1:]:
        shared = shared[_is_in(shared, other)]
    rest = np.arange(completions) * _STRIDE + _REST
    closing = np.insert(shared, np.searchsorted(shared, rest), rest)
    own = [_place_in(closing, key) for key in keys]  # (T_k,) the first shared end at or after the token's
    used = closing % _STRIDE != _REST
    for span in own:
        used[span] = True
    completion = closing // _STRIDE
    none = np.bincount(completion, weights=used, minlength=completions) == 0
    used |= none[completion]  # a completion without tokens that count has one empty span
    place = np.cumsum(used) - 1
    logps = np.empty((len(tokens), int(used.sum())))
    for k, (one, span) in enumerate(zip(tokens, own, strict=True)):
        logps[k] = np.bincount(place[span], weights=one.logps, minlength=logps.shape[1])
    return Spans(np.bincount(completion[used], minlength=completions), logps)


def _keys(tokens: CountedTokens) -> Ints:
    keys: Ints = np.repeat(np.arange(len(tokens.lengths)) * _STRIDE, tokens.lengths) + tokens.ends.astype(np.int64)
    return keys


def _distinct(ascending: Ints) -> Ints:
    distinct: Ints = ascending[np.diff(ascending, prepend=-1) != 0]
    return distinct


# Two ascending arrays are merged by a stable sort of their concatenation, which treats each as a run: five times as fast as a search.


def _is_in(distinct: Ints, ascending: Ints) -> npt.NDArray[np.bool_]:
    """(N,) which of the N distinct values are in ``ascending``; both are sorted."""
    both = np.concatenate([ascending, distinct])
    order = np.argsort(both, kind="stable")
    again = np.diff(both[order], prepend=-1) == 0
    found: npt.NDArray[np.bool_] = again[order >= len(ascending)]
    return found


def _place_in(distinct: Ints, ascending: Ints) -> Ints:
    """(N,) for each of the N values of ``ascending``, the index of the first value of ``distinct`` not below it; both are sorted."""
    order = np.argsort(np.concatenate([ascending, distinct]), kind="stable")
    is_value = order < len(ascending)
    places: Ints = np.cumsum(~is_value, dtype=np.int64)[is_value]
    return places


def load_spans(storage: Storage, prefix: str, references: int, completions: int) -> Spans | None:
    """The spans in the derived file with this prefix; None if there is no intact one."""
    names = _columns(references)
    for table in derived_tables(storage, SPANS, prefix, names):
        first, *logps = (table.column(name).to_numpy() for name in names)
        starts = np.flatnonzero(first)
        if len(starts) == completions:
            return Spans(np.diff(starts, append=len(first)), np.stack(logps))
    return None


def store_spans(storage: Storage, prefix: str, spans: Spans) -> None:
    """Store the spans for the next run: one row per span, ``first`` where a completion begins."""
    first = np.zeros(spans.logps.shape[1], np.bool_)
    first[np.cumsum(spans.lengths) - spans.lengths] = True
    names = _columns(len(spans.logps))
    table = pa.table([pa.array(first), *(pa.array(logps) for logps in spans.logps)], names)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=False,
        column_encoding=dict.fromkeys(names[1:], "BYTE_STREAM_SPLIT"),
    )
    keep_derived(storage, SPANS, prefix, sink.getvalue())


def _columns(references: int) -> list[str]:
    return ["first", *(f"logps_{k}" for k in range(references))]
