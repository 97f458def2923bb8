"""Statistics of a cache, counted shard by shard."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.shards import SHARDS, read_checked, read_rows
from mrpo_pipeline.cache.storage import Storage
from mrpo_pipeline.cache.superseded import Keys, Places, row_keys, superseded_rows


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


@dataclass(frozen=True, slots=True)
class _Sums:
    rows: int = 0
    complete: int = 0
    tokens: int = 0
    nats: float = 0.0

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.rows + other.rows,
            self.complete + other.complete,
            self.tokens + other.tokens,
            self.nats + other.nats,
        )


def cache_stats(storage: Storage, manifest: Manifest | None, unfit: int) -> CacheStats:
    """Count rows, completions and tokens of verified shards. Raises DamagedError for a damaged shard."""
    names = storage.list(SHARDS)
    none = np.empty(0, np.int64)
    with ThreadPoolExecutor(storage.at_once) as pool:
        read = list(pool.map(lambda name: _sums(storage, name, manifest, none), names))
    sums = {name: found for name, (found, _) in zip(names, read, strict=True)}
    rows = sum(found.rows for found in sums.values())
    keys = {name: found for name, (_, found) in zip(names, read, strict=True)}
    for name, superseded in superseded_rows(storage, keys, manifest).items():
        sums[name], _ = _sums(storage, name, manifest, superseded)
    served = sum(sums.values(), _Sums())
    return CacheStats(
        shards=len(names),
        size=sum(storage.size(name) for name in names),
        rows=rows,
        completions=served.rows,
        complete=served.complete,
        tokens=served.tokens,
        nats_per_token=served.nats / served.tokens if served.tokens else float("nan"),
        unfit=unfit,
    )


def _sums(storage: Storage, name: str, manifest: Manifest | None, superseded: Places) -> tuple[_Sums, Keys]:
    """The sums of a shard over its rows except the superseded ones, and the keys of all its rows."""
    sums, keys = _Sums(), [np.empty(0, np.uint64)]
    for group in read_rows(storage, name, read_checked(storage, name), manifest):
        if not len(group):
            continue
        keys.append(row_keys(group.completion_ids))
        counts = ~np.isin(np.arange(group.first, group.first + len(group)), superseded)
        nats = -np.add.reduceat(group.logprobs.astype(np.float64), group.offsets[:-1])
        sums += _Sums(
            int(counts.sum()),
            int(group.complete[counts].sum()),
            int(np.diff(group.offsets)[counts].sum()),
            float(nats[counts].sum()),
        )
    return sums, np.concatenate(keys)
