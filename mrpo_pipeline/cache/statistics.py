"""What a cache holds, counted shard by shard: of each row some 30 bytes are kept in memory, whatever its length."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.shards import SHARDS, Rows, read_checked, read_rows
from mrpo_pipeline.cache.storage import Storage


@dataclass(frozen=True)
class CacheStats:
    """Statistics of a reference's cache.

    ``rows`` counts rows of the shards, ``completions`` distinct completions, ``complete`` those scored to the end, ``tokens`` their
    tokens, ``nats_per_token`` the mean negative log-prob of these, ``unfit`` the unscorable completions.
    """

    shards: int
    size: int
    rows: int
    completions: int
    complete: int
    tokens: int
    nats_per_token: float
    unfit: int


_ROW = np.dtype([("high", "u8"), ("low", "u8"), ("complete", "?"), ("last", "i4"), ("tokens", "i4"), ("nats", "f8")])


def cache_stats(storage: Storage, manifest: Manifest | None, unfit: int) -> CacheStats:
    """Count rows, completions and tokens of verified shards. Raises DamagedError for a damaged shard."""
    names = storage.list(SHARDS)

    def read(name: str) -> npt.NDArray[np.void]:
        groups = read_rows(storage, name, read_checked(storage, name), manifest)
        return _joined([_summary(group) for group in groups])

    with ThreadPoolExecutor(storage.at_once) as pool:
        every = _joined(list(pool.map(read, names)))
    best = every[_best(every)]
    tokens = int(best["tokens"].sum(dtype=np.int64))
    return CacheStats(
        shards=len(names),
        size=sum(storage.size(name) for name in names),
        rows=len(every),
        completions=len(best),
        complete=int(best["complete"].sum()),
        tokens=tokens,
        nats_per_token=float(best["nats"].sum()) / tokens if tokens else float("nan"),
        unfit=unfit,
    )


def _joined(parts: Sequence[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    return np.concatenate([np.empty(0, _ROW), *parts])


def _summary(group: Rows) -> npt.NDArray[np.void]:
    """(N,) of ``_ROW``, for N rows."""
    found = np.empty(len(group), _ROW)
    if len(group):
        found["high"], found["low"] = _packed(group.completion_ids).T
        found["complete"] = group.complete
        found["last"] = group.byte_ends[group.offsets[1:] - 1]
        found["tokens"] = np.diff(group.offsets)
        found["nats"] = -np.add.reduceat(group.logprobs.astype(np.float64), group.offsets[:-1])
    return found


def _packed(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """(N, 2) the 16 bytes of N completion ids, each 32 lower-case hex digits."""
    text = np.frombuffer("".join(ids.to_pylist()).encode(), np.uint8).reshape(-1, 32)
    digits = (text & 15) + 9 * (text >> 6)  # "a" is 0x61
    return np.ascontiguousarray(digits[:, 0::2] << 4 | digits[:, 1::2]).view(np.uint64)


def _best(rows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Places of one row per completion: as ``coverage.best_rows``, of equal rows the first."""
    order: npt.NDArray[np.int64] = np.lexsort((rows["low"], rows["high"]))
    if _repeats(rows[order]).any():
        keys = (-rows["tokens"], -rows["last"], ~rows["complete"], rows["low"], rows["high"])
        order = np.lexsort(keys)  # stable: equal rows stay in order
    first: npt.NDArray[np.int64] = order[~_repeats(rows[order])]
    return first


def _repeats(rows: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """(N,) whether a row is of the same completion as the one before it."""
    same = np.zeros(len(rows), bool)
    same[1:] = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    return same
