"""Join small shards into large ones: a cache of thousands opens faster, since each shard has a footer to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.schema import encode_shard
from mrpo_pipeline.cache.shards import SHARDS, checked_table
from mrpo_pipeline.cache.storage import Storage
from mrpo_pipeline.cache.superseded import Places, shard_keys, superseded_rows


@dataclass(frozen=True)
class Compacted:
    """Numbers of shards that were joined, and of shards that now hold their rows."""

    joined: int
    written: int


def compact_cache(storage: Storage, manifest: Manifest, rows_per_shard: int = 10_000) -> Compacted:
    """Join shards with fewer than half of ``rows_per_shard`` rows into shards of ``rows_per_shard`` rows, then remove them.

    Rows that another of these shards supersedes are dropped. The cache serves the same completions with the same sums, except that a
    completion may now be served by its row in a large shard, which differs by the engine's drift. After a kill, compacting again
    finishes the work.

    Raises:
        DamagedError: a small shard is not what was written; nothing is removed then.
    """
    names = storage.list(SHARDS)
    with ThreadPoolExecutor(storage.at_once) as pool:
        every = zip(names, pool.map(lambda name: shard_keys(storage, name, manifest), names), strict=True)
        small = {name: keys for name, keys in every if 0 < len(keys) < rows_per_shard / 2}
    if len(small) < 2:
        return Compacted(0, 0)
    # No row is dropped because a large shard supersedes it: large shards are not verified here.
    tables = _tables(storage, list(small), superseded_rows(storage, small, manifest))
    written = [
        storage.put(SHARDS, encode_shard(table, manifest.fingerprint)) for table in _batches(tables, rows_per_shard)
    ]
    removed = [name for name in small if name not in written]
    for name in removed:
        storage.delete(name)
    return Compacted(len(removed), len(written))


def _tables(storage: Storage, names: Sequence[str], superseded: Mapping[str, Places]) -> Iterator[pa.Table]:
    """The verified rows of each shard, without the superseded ones."""
    for name in names:
        table = checked_table(storage, name)
        if name in superseded:
            table = table.take(pa.array(np.setdiff1d(np.arange(table.num_rows), superseded[name])))
        yield table


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
