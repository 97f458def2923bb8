"""Sums of log-probs, as stage two reads them: from verified shards, kept in a derived file of their own.

The derived file's name carries a digest of the shards and of the manifest's fingerprint, a digest of what was asked, and the
SHA-256 of its own bytes. It is used only where all of them agree; else it is built again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.parquet import BoundedParquet
from mrpo_pipeline.cache.schema import encode_plain
from mrpo_pipeline.cache.shards import DamagedError, Rows, read_checked, read_rows
from mrpo_pipeline.cache.storage import Storage, StoreError

log = logging.getLogger("mrpo")

SUMS = "sums"

# References of which it was said that sums cannot be kept beside them.
_not_kept: set[str] = set()

# Part of every key: a change in how sums are made must not meet files made the old way.
_METHOD = "mrpo sums 1"

SUMS_SCHEMA: dict[str, pl.DataType] = {
    "completion_id": pl.String(),
    "cut": pl.Int64(),
    "logps": pl.Float64(),
    "tokens": pl.Int32(),
}


def shards_key(names: Sequence[str], manifest: Manifest | None) -> str:
    """Digest of a set of shards (their names carry their checksums) and of what they were computed from, 32 hex digits."""
    origin = "" if manifest is None else manifest.fingerprint_hash
    return hashlib.sha256("\n".join([_METHOD, origin, *sorted(names)]).encode()).hexdigest()[:32]


def wanted_key(distinct: pl.DataFrame) -> str:
    """Digest of distinct, sorted ``completion_id`` and ``cut``, 32 hex digits."""
    digest = hashlib.sha256(distinct["cut"].fill_null(-1).to_numpy().tobytes())
    digest.update("\n".join(distinct["completion_id"].to_list()).encode())
    return digest.hexdigest()[:32]


def load_sums(storage: Storage, prefix: str) -> pl.DataFrame | None:
    """The derived file of that prefix, where one is there and is what was written."""
    for name in storage.list(SUMS):
        if not name.startswith(f"{SUMS}/{prefix}"):
            continue
        try:
            file = BoundedParquet(pa.BufferReader(read_checked(storage, name)), list(SUMS_SCHEMA))
            frame = cast(pl.DataFrame, pl.from_arrow(file.read()))
        except (DamagedError, pa.ArrowException, OSError, ValueError) as error:
            log.warning("%s/%s is not used and is built again: %s", storage, name, getattr(error, "problem", error))
            continue
        if frame.schema == SUMS_SCHEMA:
            return frame
    return None


def store_sums(storage: Storage, prefix: str, sums: pl.DataFrame) -> None:
    """Keep the sums for the next run; a cache that cannot be written to (read-only, full) is no obstacle, and said once."""
    table = sums.to_arrow(compat_level=pl.CompatLevel.oldest())
    try:
        storage.clear_leftovers(SUMS)
        storage.put(SUMS, encode_plain(table), prefix=prefix)
    except (OSError, StoreError) as error:
        if str(storage) not in _not_kept:
            _not_kept.add(str(storage))
            reason = str(error).split(": expected")[0]
            log.info("The sums could not be kept in %s/%s: each run adds them up again (%s).", storage, SUMS, reason)


def build_sums(storage: Storage, serving: pl.DataFrame) -> pl.DataFrame:
    """Add up the log-probs that count, in float64, from verified shards.

    Args:
        serving: ``completion_id``, ``cut`` and the serving row's ``shard`` and ``row``, as ``Coverage.serving`` gives them.

    Returns:
        ``completion_id``, ``cut``, ``logps`` (nats) and ``tokens``, null in the rows that nothing serves.

    Raises:
        DamagedError: for a shard that is not what was written.
    """
    count = serving.height
    logps = np.full(count, np.nan)
    tokens = np.zeros(count, np.int32)
    numbered = serving.with_row_index("at").filter(pl.col("shard").is_not_null())
    parts = [(str(name), part.sort("row")) for (name,), part in numbered.group_by("shard")]

    def add_up(job: tuple[str, pl.DataFrame]) -> None:
        name, part = job
        rows = part["row"].to_numpy()
        data = read_checked(storage, name)
        for group in read_rows(storage, name, data):
            low, high = np.searchsorted(rows, [group.first, group.first + len(group)])
            if low == high:
                continue
            chosen = part.slice(low, high - low)
            places = rows[low:high] - group.first
            ids = cast(pl.Series, pl.from_arrow(group.completion_ids.take(pa.array(places))))
            if not ids.equals(chosen["completion_id"]):
                raise DamagedError(storage, name, "its rows are not the ones that it had a moment ago")
            at = chosen["at"].to_numpy()
            logps[at], tokens[at] = _row_sums(group, places, chosen["cut"])

    workers = max(min(4, os.cpu_count() or 1), storage.at_once)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(add_up, parts))
    served = pl.col("shard").is_not_null()
    return serving.select(
        "completion_id",
        "cut",
        pl.when(served).then(pl.Series(logps)).alias("logps"),
        pl.when(served).then(pl.Series(tokens)).alias("tokens"),
    )


def _row_sums(group: Rows, places: np.ndarray, cuts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts over the tokens that count: all without a cut; else those that end at or before the cut, and never
    the end-of-turn token, which is the last of a complete row.

    Args:
        places: (N,) rows of the group, one for each sum.
        cuts: (N,) bytes, null for none.

    Returns:
        (N,) float64 nats and (N,) int32 tokens.
    """
    lengths = np.diff(group.offsets)[places]
    segment = np.repeat(np.arange(len(places)), lengths)  # (T,) which sum each token belongs to
    starts = np.cumsum(lengths) - lengths
    token = np.arange(len(segment)) + (group.offsets[places] - starts)[segment]  # (T,) its place in the group
    cut = cuts.fill_null(np.iinfo(np.int64).max).to_numpy()[segment]
    counts = group.byte_ends[token] <= cut
    closing = (starts + lengths - 1)[group.complete[places] & cuts.is_not_null().to_numpy()]
    counts[closing] = False
    values = np.where(counts, group.logprobs[token], np.float32(0)).astype(np.float64)
    return (
        np.bincount(segment, weights=values, minlength=len(places)),
        np.bincount(segment, weights=counts, minlength=len(places)).astype(np.int32),
    )
