"""Join small shards into large ones: a cache of thousands opens faster, since each shard has a footer to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.coverage import Coverage, best_rows, read_completions
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.schema import encode_shard
from mrpo_pipeline.cache.shards import SHARDS
from mrpo_pipeline.cache.storage import Storage


@dataclass(frozen=True)
class Compacted:
    """Shards that were joined, and the shards that hold their rows now."""

    joined: int
    written: int


def compact_cache(storage: Storage, coverage: Coverage, manifest: Manifest, rows_per_shard: int = 10_000) -> Compacted:
    """Write the rows of shards of less than half of ``rows_per_shard`` into shards of that many, then remove those shards.

    Rows that another of these shards supersedes are left out. The cache serves the same completions with the same sums; of a
    completion that a large shard holds as well, the other of its two rows may serve, which differs by the engine's drift. Killed at any
    instant, compacting again finishes the work.

    Raises:
        DamagedError: a small shard is not what was written; nothing is removed then.
    """
    rows = coverage.rows()
    sizes = rows.group_by("shard").agg(pl.len().alias("rows"))
    small = sizes.filter(pl.col("rows") < rows_per_shard / 2)["shard"].sort()
    if len(small) < 2:
        return Compacted(0, 0)
    # Beside large shards nothing is left out: whether those are sound is not looked at here.
    best = best_rows(rows.filter(pl.col("shard").is_in(small.implode()))).select("shard", "row").sort("shard", "row")
    written = [
        storage.put(SHARDS, encode_shard(table, manifest.fingerprint))
        for table in _batches(read_completions(storage, best), rows_per_shard)
    ]
    removed = [name for name in small if name not in written]
    for name in removed:
        storage.delete(name)
    return Compacted(len(removed), len(written))


def _batches(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The rows in order, ``size`` at a time."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(part.num_rows for part in held) >= size:
            joined = pa.concat_tables(held)
            yield joined.slice(0, size).combine_chunks()
            held = [joined.slice(size)]
    rest = pa.concat_tables(held) if held else None
    if rest is not None and rest.num_rows:
        yield rest.combine_chunks()
