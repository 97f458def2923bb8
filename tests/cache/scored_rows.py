"""Synthetic scored completions, and the expected answers of a cache in plain Python."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from mrpo_pipeline.cache import CompletionRow, ReferenceCache

FINGERPRINT = {"weights": "sha256:w", "template": "t1", "dtype": "float32"}


def cid(number: int) -> str:
    return hashlib.md5(str(number).encode()).hexdigest()


def row(number: int, logprobs: Iterable[float], ends: Iterable[int], complete: bool) -> CompletionRow:
    logps = np.array(list(logprobs), np.float32)
    return CompletionRow(
        cid(number), 7, np.arange(len(logps), dtype=np.int32), logps, np.array(list(ends), np.int32), complete
    )


def cache_at(root: str | Path, name: str = "base") -> ReferenceCache:
    cache = ReferenceCache.open(root, name)
    cache.create_or_check(FINGERPRINT, {"engine": "made up"})
    return cache


def write(cache: ReferenceCache, rows: Iterable[CompletionRow], rows_per_shard: int = 1000) -> list[str]:
    with cache.writer(rows_per_shard=rows_per_shard) as writer:
        for one in rows:
            writer.add(one)
    return writer.shards


def wanted(items: Iterable[tuple[int, int | None]]) -> pl.DataFrame:
    listed = list(items)
    return pl.DataFrame(
        {"completion_id": [cid(number) for number, _ in listed], "cut": [cut for _, cut in listed]},
        schema={"completion_id": pl.String, "cut": pl.Int64},
    )


def serves(one: CompletionRow, cut: int | None) -> bool:
    return bool(one.complete) or (cut is not None and int(one.byte_ends[-1]) >= cut)


def serving_row(rows: Iterable[CompletionRow], number: int, cut: int | None) -> CompletionRow | None:
    """The complete row, else the longest, if it serves the cut."""
    ours = [one for one in rows if one.completion_id == cid(number)]
    best = max(ours, key=lambda one: (one.complete, int(one.byte_ends[-1]), len(one.byte_ends)), default=None)
    return best if best is not None and serves(best, cut) else None


def counted_sum(one: CompletionRow, cut: int | None) -> tuple[float, int]:
    """The exactly rounded sum of the tokens up to the cut, and their number."""
    values = []
    for place, (logp, end) in enumerate(zip(one.logprobs.tolist(), one.byte_ends.tolist(), strict=True)):
        end_of_turn = one.complete and place == len(one.logprobs) - 1
        if cut is None or (end <= cut and not end_of_turn):
            values.append(logp)
    return math.fsum(values), len(values)
