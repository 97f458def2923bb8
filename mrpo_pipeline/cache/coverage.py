"""What the shards can serve: which completions, and how far each was scored.

A row serves a cut if it is complete or its last byte end reaches the cut; of several rows of one completion the complete
one serves, else the longest: in bytes, then in tokens (several tokens may end at one byte).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.parquet import BoundedParquet
from mrpo_pipeline.cache.shards import (
    SHARDS,
    DamagedError,
    check_origin,
    is_damage,
    list_parts,
    one_array,
    read_checked,
    read_rows,
)
from mrpo_pipeline.cache.storage import Storage

COVERAGE_SCHEMA: dict[str, pl.DataType] = {
    "completion_id": pl.String(),
    "complete": pl.Boolean(),
    "last": pl.Int32(),
    "length": pl.Int64(),
    "row": pl.Int64(),
    "shard": pl.String(),
}


def shard_coverage(storage: Storage, name: str, manifest: Manifest | None) -> pl.DataFrame:
    """What one shard holds, from the three columns that tell it.

    The pages' own checksums are verified; the shard's is where numbers are used.

    Args:
        manifest: what the reference's numbers are computed from; None where that is not looked at.

    Raises:
        OSError: where the shard is gone, or may not be read.
        DamagedError: where it is no shard, or one of another reference.
    """
    parts = []
    first = 0
    try:
        with storage.open(name) as source:
            file = BoundedParquet(source, ["completion_id", "byte_ends", "complete"], verified=True)
            check_origin(storage, name, file, manifest)
            for table in file.tables():
                offsets, ends = list_parts(one_array(table, "byte_ends"))
                if (np.diff(offsets) == 0).any():
                    raise ValueError("a row holds no tokens")
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
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and not is_damage(error):
            raise
        raise DamagedError(storage, name, str(error).strip().split("\n")[0]) from error
    return pl.concat(parts) if parts else pl.DataFrame(schema=COVERAGE_SCHEMA)


class Coverage:
    """How far each completion of a cache was scored, kept up with the shards that are there."""

    def __init__(self, storage: Storage, manifest: Callable[[], Manifest | None]) -> None:
        """
        Args:
            storage: the reference's folder.
            manifest: reads what its numbers are computed from; asked when there is a shard to look into.
        """
        self._storage = storage
        self._manifest = manifest
        self._shards: dict[str, pl.DataFrame] = {}

    def rows(self, names: Sequence[str] | None = None) -> pl.DataFrame:
        """Every row of the shards: ``completion_id``, ``complete``, ``last`` (bytes), ``length`` (tokens), ``row``, ``shard``.

        A shard is read once: its name fixes its content. One that another process removed since it was listed is passed
        over.

        Args:
            names: the shards; all that are there where not given.
        """
        names = self._storage.list(SHARDS) if names is None else names
        read = [name for name in names if name not in self._shards]
        manifest = self._manifest() if read else None
        with ThreadPoolExecutor(self._storage.at_once) as pool:
            every = self._shards | dict(zip(read, pool.map(lambda name: self._read(name, manifest), read), strict=True))
        self._shards = {name: frame for name in names if (frame := every[name]) is not None}
        parts = list(self._shards.values())
        return pl.concat(parts, rechunk=False) if parts else pl.DataFrame(schema=COVERAGE_SCHEMA)

    def _read(self, name: str, manifest: Manifest | None) -> pl.DataFrame | None:
        try:
            return shard_coverage(self._storage, name, manifest)
        except FileNotFoundError:
            return None

    def serving(self, wanted: pl.DataFrame, names: Sequence[str] | None = None) -> pl.DataFrame:
        """``wanted`` with the columns ``complete``, ``last``, ``row``, ``shard`` of the row that serves it, null where none.

        Args:
            wanted: with ``completion_id`` and ``cut`` (int64, bytes; null for the whole).
            names: the shards to look in; all that are there where not given.
        """
        asked = wanted.select("completion_id").unique()
        best = best_rows(self.rows(names).join(asked, on="completion_id", how="semi"))
        joined = wanted.join(best, on="completion_id", how="left", maintain_order="left")
        served = pl.col("complete") | (pl.col("last") >= pl.col("cut")).fill_null(False)
        columns = ("complete", "last", "row", "shard")
        return joined.drop("length").with_columns(pl.when(served).then(pl.col(name)).alias(name) for name in columns)


def best_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """One row for each completion: the complete one, else the longest; of equals always the same one."""
    if rows["completion_id"].n_unique() == rows.height:
        return rows
    return rows.sort(
        ["complete", "last", "length", "shard", "row"], descending=[True, True, True, False, False]
    ).unique("completion_id", keep="first", maintain_order=True)


def read_completions(storage: Storage, best: pl.DataFrame) -> Iterator[pa.Table]:
    """Whole rows of the shard schema, from verified shards.

    Args:
        best: with ``shard``, ``row`` and ``completion_id``, none null.

    Raises:
        DamagedError: for a shard that is not what was written.
    """
    for (name,), part in best.group_by("shard", maintain_order=True):
        data = read_checked(storage, str(name))
        for _ in read_rows(storage, str(name), data):
            pass
        yield pq.read_table(pa.BufferReader(data), use_threads=False).take(pa.array(part["row"].to_numpy()))
