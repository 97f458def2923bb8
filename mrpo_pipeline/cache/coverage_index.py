"""The coverage of all shards in one derived file beside the sums, so that a cache of thousands of shards opens with one read.

The file's name holds a digest of the manifest's fingerprint and the SHA-256 of its bytes. For each shard it has the size and times of
its file when it was read; a shard whose file was changed or replaced since then is read again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.sequence_logps import derived_tables, keep_derived
from mrpo_pipeline.cache.storage import Storage, StoreError

INDEX = "coverage"

# Part of every key: increase it when the coverage of a shard is read differently.
_METHOD = "1"
_SHARDS = b"mrpo.shards"
_COLUMNS = ("id", "complete", "last", "length")


def index_prefix(manifest: Manifest | None) -> str:
    """Prefix of the names of this manifest's index files."""
    return f"{_METHOD}-{'' if manifest is None else manifest.fingerprint_hash[:32]}-"


def load_index(storage: Storage, stamps: Mapping[str, str], manifest: Manifest | None) -> tuple[set[str], pl.DataFrame]:
    """The shards whose files are unchanged since they were indexed, and their coverage.

    Args:
        stamps: the requested shards with their current stamps (see ``Storage.stamps``).
    """
    for table in derived_tables(storage, INDEX, index_prefix(manifest), _COLUMNS) if stamps else ():
        try:
            return _unpack(table, stamps)
        except (ValueError, KeyError, TypeError, pa.ArrowException, pl.exceptions.PolarsError):
            continue
    return set(), pl.DataFrame()


def store_index(storage: Storage, rows: pl.DataFrame, stamps: Mapping[str, str], manifest: Manifest | None) -> None:
    """Store the coverage for the next run in place of the earlier index, if the storage is writable.

    Args:
        rows: in ``COVERAGE_SCHEMA``; the rows of a shard are consecutive and in its order.
        stamps: of their shards, taken before the shards were read.
    """
    if not storage.can_write():
        return
    data = _pack(rows, stamps)
    if data is None:
        return
    before = storage.list(INDEX)
    name = keep_derived(storage, INDEX, index_prefix(manifest), data)
    for other in before if name else ():
        try:
            if other != name:
                storage.delete(other)
        except (OSError, StoreError):  # pruned later
            return


def _pack(rows: pl.DataFrame, stamps: Mapping[str, str]) -> pa.Buffer | None:
    """The bytes of an index file; None for completion ids that are not hex digits, which only a damaged shard has."""
    ids = rows["completion_id"].str.decode("hex", strict=False)
    if ids.null_count() or not ids.bin.encode("hex").equals(rows["completion_id"]):
        return None
    runs = rows["shard"].rle().struct.unnest()
    shards = [
        (name, stamps[name], count) for name, count in zip(runs["value"].to_list(), runs["len"].to_list(), strict=True)
    ]
    table = pa.table(
        {
            "id": ids.to_arrow().cast(pa.binary(16)),
            "complete": rows["complete"].to_arrow(),
            "last": rows["last"].to_arrow(),
            "length": rows["length"].cast(pl.Int32).to_arrow(),
        }
    ).replace_schema_metadata({_SHARDS: json.dumps(shards).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", use_dictionary=False)
    return sink.getvalue()


def _unpack(table: pa.Table, stamps: Mapping[str, str]) -> tuple[set[str], pl.DataFrame]:
    """The shards with unchanged stamps, and their rows."""
    shards = json.loads(table.schema.metadata[_SHARDS])
    names = [str(name) for name, _, _ in shards]
    counts = np.array([count for _, _, count in shards], np.int64)
    if counts.sum() != table.num_rows or (counts < 0).any():
        raise ValueError("its shards have other counts than its rows")
    shard = np.repeat(np.arange(len(names)), counts)
    starts = np.cumsum(counts) - counts
    frame = pl.DataFrame(
        {
            "completion_id": pl.Series(pl.from_arrow(table["id"].cast(pa.binary()))).bin.encode("hex"),
            "complete": pl.from_arrow(table["complete"]),
            "last": pl.from_arrow(table["last"]),
            "length": pl.Series(pl.from_arrow(table["length"])).cast(pl.Int64),
            "row": np.arange(table.num_rows) - starts[shard],
            "shard": pl.Series(names, dtype=pl.String).gather(shard),
        }
    )
    same = np.array([stamps.get(name) == stamp for name, stamp, _ in shards], bool)
    kept = {name for name, sound in zip(names, same.tolist(), strict=True) if sound}
    return kept, frame if same.all() else frame.filter(pl.Series(same[shard]))
