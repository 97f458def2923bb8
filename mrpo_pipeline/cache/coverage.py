"""Which completions the shards have, and up to which byte each was scored.

A row serves a cut if it is complete or its last byte end reaches the cut. Of several rows of one completion the complete one is used,
else the longest, in bytes, then in tokens (several tokens may end at one byte).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.bounded_parquet import BoundedParquet
from mrpo_pipeline.cache.coverage_index import load_index, store_index
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.shards import (
    SHARDS,
    DamagedError,
    check_origin,
    checked_table,
    is_damage,
    list_parts,
    one_array,
)
from mrpo_pipeline.cache.storage import Storage

# Number of shards outside the stored index from which the index is read or rewritten.
MANY = 64

COVERAGE_SCHEMA: dict[str, pl.DataType] = {
    "completion_id": pl.String(),
    "complete": pl.Boolean(),
    "last": pl.Int32(),
    "length": pl.Int64(),
    "row": pl.Int64(),
    "shard": pl.String(),
}


def shard_coverage(storage: Storage, name: str, manifest: Manifest | None) -> pl.DataFrame:
    """The coverage of one shard.

    Verifies the checksums of the pages; the shard's checksum is verified where log-probs are read.

    Args:
        manifest: of the reference; None to skip the check of the shard's origin.

    Raises:
        OSError: for a missing or unreadable file.
        DamagedError: for a file that is not a shard, or another reference's.
    """
    parts = []
    first = 0
    with opened_shard(storage, name, ["completion_id", "byte_ends", "complete"], manifest) as file:
        for table in file.tables():
            offsets, ends = list_parts(one_array(table, "byte_ends"))
            if (np.diff(offsets) == 0).any():
                raise ValueError("a row has no tokens")
            frame = pl.DataFrame(
                {
                    "completion_id": pl.from_arrow(one_array(table, "completion_id")),
                    "complete": pl.from_arrow(one_array(table, "complete")),
                    "last": ends[offsets[1:] - 1],
                    "length": np.diff(offsets),
                    "row": np.arange(first, first + table.num_rows),
                }
            )
            parts.append(frame.with_columns(shard=pl.lit(name)))
            first += table.num_rows
    return pl.concat(parts) if parts else pl.DataFrame(schema=COVERAGE_SCHEMA)


@contextmanager
def opened_shard(
    storage: Storage, name: str, columns: Sequence[str], manifest: Manifest | None
) -> Iterator[BoundedParquet]:
    """Open columns of a shard, with its pages and origin verified. Errors in the block that a damaged file causes become DamagedError.

    Other arguments and errors as in :func:`shard_coverage`.
    """
    try:
        with storage.open(name) as source:
            file = BoundedParquet(source, columns, verified=True)
            check_origin(storage, name, file, manifest)
            yield file
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and not is_damage(error):
            raise
        raise DamagedError(storage, name, str(error).strip().split("\n")[0]) from error


class Coverage:
    """The coverage of a cache, updated with its shards."""

    def __init__(self, storage: Storage, manifest: Callable[[], Manifest | None]) -> None:
        """
        Args:
            storage: the reference's folder.
            manifest: reads the reference's manifest; called when there is a shard to read.
        """
        self._storage = storage
        self._manifest = manifest
        self._names: set[str] = set()
        self._rows = pl.DataFrame(schema=COVERAGE_SCHEMA)
        self._stored = 0

    def rows(self, names: Sequence[str] | None = None) -> pl.DataFrame:
        """Every row of the shards: ``completion_id``, ``complete``, ``last`` (bytes), ``length`` (tokens), ``row``, ``shard``.

        A shard is read once, because its name fixes its content. Of many shards, only those missing from the stored index are read.
        Shards that another process removes meanwhile are skipped.

        Args:
            names: of the shards; None for all.
        """
        names = self._storage.list(SHARDS) if names is None else names
        if self._names - set(names):
            self._rows = self._rows.filter(pl.col("shard").is_in(list(names)))
            self._names &= set(names)
            self._stored = min(self._stored, len(self._names))
        fresh = [name for name in names if name not in self._names]
        if fresh:
            self._add(fresh)
        return self._rows

    def _add(self, fresh: Sequence[str]) -> None:
        manifest = self._manifest()
        # Taken before the shards are read, so that a shard changed meanwhile is read again by the next run.
        stamps = self._storage.stamps(SHARDS) if self._are_many(len(fresh)) else {}
        found, rows = load_index(self._storage, {name: stamps[name] for name in fresh if name in stamps}, manifest)
        parts = [self._rows, rows]
        self._stored += len(found)
        read = [name for name in fresh if name not in found]
        with ThreadPoolExecutor(self._storage.at_once) as pool:
            for name, frame in zip(read, pool.map(lambda name: self._read(name, manifest), read), strict=True):
                if frame is not None:
                    parts.append(frame)
                    found.add(name)
        self._rows = pl.concat([part for part in parts if part.height] or parts[:1])
        self._names |= found
        if stamps and self._are_many(0) and self._names <= stamps.keys():
            store_index(self._storage, self._rows, stamps, manifest)
            self._stored = len(self._names)

    def _are_many(self, fresh: int) -> bool:
        """Whether enough shards are missing from the stored index to read it, or to write a new one."""
        return len(self._names) + fresh - self._stored >= max(MANY, self._stored // 4)

    def _read(self, name: str, manifest: Manifest | None) -> pl.DataFrame | None:
        try:
            return shard_coverage(self._storage, name, manifest)
        except FileNotFoundError:
            return None

    def serving(self, wanted: pl.DataFrame, names: Sequence[str] | None = None) -> pl.DataFrame:
        """``wanted`` with ``complete``, ``last``, ``row``, ``shard`` of the row that serves it, null if there is none.

        Args:
            wanted: with ``completion_id`` and ``cut`` (int64, bytes; null for none).
            names: of the shards; None for all.
        """
        rows = self.rows(names)
        if wanted.height < rows.height // 2:  # compare only rows of wanted completions
            rows = rows.join(wanted.select("completion_id"), on="completion_id", how="semi")
        best = best_rows(rows)
        joined = wanted.join(best, on="completion_id", how="left", maintain_order="left")
        served = pl.col("complete") | (pl.col("last") >= pl.col("cut")).fill_null(False)
        columns = ("complete", "last", "row", "shard")
        return joined.drop("length").with_columns(pl.when(served).then(pl.col(name)).alias(name) for name in columns)


def best_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per completion: the complete one, else the longest; ties are broken deterministically."""
    if rows["completion_id"].n_unique() == rows.height:
        return rows
    return rows.sort(
        ["complete", "last", "length", "shard", "row"], descending=[True, True, True, False, False]
    ).unique("completion_id", keep="first", maintain_order=True)


def read_completions(storage: Storage, best: pl.DataFrame) -> Iterator[pa.Table]:
    """Rows in the shard schema, from verified shards.

    Args:
        best: ``shard`` and ``row``, without nulls.

    Raises:
        DamagedError: for a damaged shard.
    """
    for (name,), part in best.group_by("shard", maintain_order=True):
        yield checked_table(storage, str(name)).take(pa.array(part["row"].to_numpy()))
