"""Log-prob sums for stage two, from verified shards, stored in a derived file.

Its name holds a digest of the shards and the manifest's fingerprint, a digest of the request, and the SHA-256 of its bytes. It is used
only if all agree, else rebuilt.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.bounded_parquet import BoundedParquet
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.schema import encode_plain
from mrpo_pipeline.cache.shards import DamagedError, Rows, read_checked, read_rows
from mrpo_pipeline.cache.storage import Storage, StoreError

log = logging.getLogger("mrpo")

SUMS = "sums"

# References for which it was logged that their sums can't be stored.
_not_stored: set[str] = set()

_NO_CUT = np.iinfo(np.int64).max

# Part of every key: increase it when sums are computed differently.
_METHOD = "mrpo sums 1"

Ints = npt.NDArray[np.int64]

SUMS_SCHEMA: dict[str, pl.DataType] = {
    "completion_id": pl.String(),
    "cut": pl.Int64(),
    "logps": pl.Float64(),
    "tokens": pl.Int32(),
}


def shards_key(names: Sequence[str], manifest: Manifest | None) -> str:
    """Digest of shards, by their names, and of the manifest's fingerprint, 32 hex digits."""
    origin = "" if manifest is None else manifest.fingerprint_hash
    return hashlib.sha256("\n".join([_METHOD, origin, *sorted(names)]).encode()).hexdigest()[:32]


def wanted_key(distinct: pl.DataFrame) -> str:
    """Digest of distinct, sorted ``completion_id`` and ``cut``, 32 hex digits."""
    digest = hashlib.sha256(distinct["cut"].fill_null(-1).to_numpy().tobytes())
    digest.update("\n".join(distinct["completion_id"].to_list()).encode())
    return digest.hexdigest()[:32]


def load_sums(storage: Storage, prefix: str) -> pl.DataFrame | None:
    """The sums in the derived file with this prefix; None if there is no intact one."""
    for table in derived_tables(storage, SUMS, prefix, list(SUMS_SCHEMA)):
        frame = cast(pl.DataFrame, pl.from_arrow(table))
        if frame.schema == SUMS_SCHEMA:
            return frame
    return None


def derived_tables(storage: Storage, folder: str, prefix: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The tables of the intact derived files with this prefix."""
    for name in storage.list(folder):
        if not name.startswith(f"{folder}/{prefix}"):
            continue
        try:
            table = BoundedParquet(pa.BufferReader(read_checked(storage, name)), columns).read()
        except FileNotFoundError:  # another process replaced it
            continue
        except (DamagedError, pa.ArrowException, OSError, ValueError) as error:
            log.warning("%s/%s is rebuilt: %s", storage, name, getattr(error, "problem", error))
            continue
        yield table


def is_sound(storage: Storage, folder: str, name: str) -> bool:
    """Whether a derived file has the checksum in its name."""
    try:
        read_checked(storage, f"{folder}/{name}")
    except (DamagedError, FileNotFoundError):
        return False
    return True


def store_sums(storage: Storage, prefix: str, sums: pl.DataFrame) -> None:
    """Store the sums for the next run."""
    keep_derived(storage, SUMS, prefix, encode_plain(sums.to_arrow(compat_level=pl.CompatLevel.oldest())))


def keep_derived(storage: Storage, folder: str, prefix: str, data: pa.Buffer) -> str | None:
    """Write a derived file and return its name; None if it can't be written, which is logged once per reference."""
    try:
        storage.clear_leftovers(folder)
        return storage.put(folder, data, prefix=prefix)
    except (OSError, StoreError) as error:
        if str(storage) not in _not_stored:
            _not_stored.add(str(storage))
            reason = str(error).split(": expected")[0]
            log.info(
                "What is derived can't be stored in %s/%s, so each run recomputes it (%s).", storage, folder, reason
            )
    return None


def build_sums(storage: Storage, serving: pl.DataFrame) -> pl.DataFrame:
    """Sum the log-probs that count, in float64, from verified shards.

    Args:
        serving: ``completion_id``, ``cut`` and the serving row's ``shard`` and ``row``, as ``Coverage.serving`` gives them.

    Returns:
        ``completion_id``, ``cut``, ``logps`` (nats) and ``tokens``, null for completions that are not cached.

    Raises:
        DamagedError: for a shard that is not what was written.
    """
    count = serving.height
    logps = np.full(count, np.nan)
    tokens = np.zeros(count, np.int32)

    def add_up(at: Ints, counted: Counted) -> None:
        values = np.where(counted.counts, counted.logps, np.float32(0)).astype(np.float64)
        logps[at] = np.bincount(counted.row, weights=values, minlength=len(at))
        tokens[at] = counted.per_row()

    each_serving_row(storage, serving, add_up)
    served = pl.col("shard").is_not_null()
    return serving.select(
        "completion_id",
        "cut",
        pl.when(served).then(pl.Series(logps)).alias("logps"),
        pl.when(served).then(pl.Series(tokens)).alias("tokens"),
    )


@dataclass(frozen=True, slots=True)
class Counted:
    """T tokens of N cached rows, and which of them count: all without a cut, else those that end at or before it, without the
    end-of-turn token, which is the last of a complete row."""

    row: Ints
    """(T,) index of each token's row, non-decreasing."""
    logps: npt.NDArray[np.float32]
    """(T,) nats."""
    byte_ends: npt.NDArray[np.int32]
    """(T,) end of each token in the completion's bytes."""
    counts: npt.NDArray[np.bool_]
    """(T,) whether each token counts."""
    ends_turn: npt.NDArray[np.bool_]
    """(T,) the end-of-turn tokens."""
    rows: int
    """N."""

    def per_row(self) -> Ints:
        """(N,) tokens that count."""
        return np.bincount(self.row, weights=self.counts, minlength=self.rows).astype(np.int64)


def each_serving_row(storage: Storage, serving: pl.DataFrame, use: Callable[[Ints, Counted], None]) -> None:
    """Read the serving rows from verified shards in several threads, and pass their tokens to ``use``, some thousand rows at a time.

    Args:
        serving: as for :func:`build_sums`.
        use: takes the indices of N rows in ``serving``, (N,), and their tokens.

    Raises:
        DamagedError: for a shard that is not what was written.
    """
    sorted_rows = serving.with_row_index("at").filter(pl.col("shard").is_not_null()).sort("shard", "row")
    # Plain arrays: a shard may have few rows, and there may be thousands of them.
    at, every_row = sorted_rows["at"].to_numpy().astype(np.int64), sorted_rows["row"].to_numpy()
    cuts, uncut = sorted_rows["cut"].fill_null(_NO_CUT).to_numpy(), sorted_rows["cut"].is_null().to_numpy()
    completion_ids = sorted_rows["completion_id"]
    runs = sorted_rows["shard"].rle().struct.unnest()
    lengths = runs["len"].to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    jobs = list(zip(runs["value"].to_list(), (ends - lengths).tolist(), ends.tolist(), strict=True))

    def read(job: tuple[str, int, int]) -> None:
        name, first, end = job
        rows = every_row[first:end]
        data = read_checked(storage, name)
        for group in read_rows(storage, name, data):
            low, high = np.searchsorted(rows, [group.first, group.first + len(group)])
            if low == high:
                continue
            places = rows[low:high] - group.first
            ids = cast(pl.Series, pl.from_arrow(group.completion_ids.take(pa.array(places))))
            if not ids.equals(completion_ids.slice(first + low, high - low)):
                raise DamagedError(storage, name, "its rows changed while it was read")
            chosen = slice(first + low, first + high)
            use(at[chosen], _counted(group, places, cuts[chosen], uncut[chosen]))

    workers = max(min(4, os.cpu_count() or 1), storage.at_once)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(read, jobs))


def _counted(group: Rows, places: Ints, cuts: Ints, is_uncut: npt.NDArray[np.bool_]) -> Counted:
    """The tokens of N rows of the group.

    Args:
        places: (N,) indices of the rows in the group, one for each cut.
        cuts: (N,) bytes; the largest integer for no cut. is_uncut: (N,) whether there is none.
    """
    lengths = np.diff(group.offsets)[places]
    segment = np.repeat(np.arange(len(places)), lengths)  # (T,)
    starts = np.cumsum(lengths) - lengths
    token = np.arange(len(segment)) + (group.offsets[places] - starts)[segment]  # (T,) index in the group
    cut = cuts[segment]
    ends_turn = np.zeros(len(segment), np.bool_)
    ends_turn[(starts + lengths - 1)[group.complete[places]]] = True
    uncut = is_uncut[segment]
    byte_ends = group.byte_ends[token]
    counts = (byte_ends <= cut) & (uncut | ~ends_turn)
    return Counted(segment, group.logprobs[token], byte_ends, counts, ends_turn, len(places))
