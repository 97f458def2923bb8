"""Read shards, with checks of their checksum and rows."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrpo_pipeline.cache.bounded_parquet import BoundedParquet
from mrpo_pipeline.cache.manifest import Manifest, foreign
from mrpo_pipeline.cache.schema import FINGERPRINT_KEY, SHARD_SCHEMA, impossible
from mrpo_pipeline.cache.storage import Storage, sha256_hex
from mrpo_pipeline.errors import RunError, UserError

SHARDS = "shards"

# Folder of damaged files that were moved aside; nothing reads it.
DAMAGED = "damaged"


class DamagedError(RunError, UserError):
    """A damaged file of the cache: wrong input where a command starts with it (UserError), a failure during work (RunError)."""

    def __init__(self, storage: Storage, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem = problem.rstrip(".")
        super().__init__(
            f"{storage}/{name} is damaged: {problem}. It was not used. Run `mrpo cache verify RECIPE --repair`: it moves damaged files "
            "aside and scores their completions again."
        )


def read_checked(storage: Storage, name: str) -> pa.Buffer:
    """The file's bytes, verified against the checksum at the end of its name.

    Raises:
        DamagedError: for another checksum, or a read error of the disk.
        OSError: for a missing file, or one without read access.
    """
    try:
        data = storage.read(name)
    except OSError as error:
        if not is_damage(error):
            raise
        raise DamagedError(storage, name, f"it can't be read ({error.strerror or error})") from error
    expected = PurePosixPath(name).stem[-64:]
    found = sha256_hex(data)
    if found != expected:
        raise DamagedError(storage, name, f"the SHA-256 of its bytes is {found}, expected {expected} by its name")
    return data


def is_damage(error: OSError) -> bool:
    """Whether a failed read means a damaged file: Arrow's errors, which have no number, and read errors of the disk.

    Other errors (no permission, a missing mount, too many open files) do not.
    """
    return error.errno in (None, errno.EIO) and not isinstance(error, FileNotFoundError)


def check_origin(storage: Storage, name: str, file: BoundedParquet, manifest: Manifest | None) -> None:
    """Compare the fingerprint in the shard's metadata with the manifest's.

    Raises:
        DamagedError: with the fields that differ and both values.
        ValueError: for a malformed fingerprint.
    """
    recorded = file.metadata.get(FINGERPRINT_KEY)
    problem = foreign(manifest, recorded) if manifest is not None and recorded is not None else ""
    if problem:
        read_checked(storage, name)  # reports a flipped byte as such
        raise DamagedError(storage, name, problem)


@dataclass(frozen=True, slots=True)
class Rows:
    """N consecutive rows of a shard with T tokens in all.

    Attributes:
        first: index of the first row in the shard.
        completion_ids: (N,) strings.
        prompt_tokens: (N,).
        offsets: (N + 1,) row i has the tokens ``offsets[i]:offsets[i + 1]``.
        token_ids, logprobs, byte_ends: (T,).
        complete: (N,).
    """

    first: int
    completion_ids: pa.Array
    prompt_tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    byte_ends: npt.NDArray[np.int32]
    complete: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.complete)


def read_rows(storage: Storage, name: str, data: pa.Buffer, manifest: Manifest | None = None) -> Iterator[Rows]:
    """The rows of a shard in batches of some thousands, checked.

    Args:
        data: the shard's bytes, from ``read_checked``.
        manifest: of the reference; None where ``Coverage`` has checked the origin.

    Raises:
        DamagedError: for a file that is not a shard, nulls, lists of unequal length, impossible log-probs, decreasing byte ends.
    """
    first = 0
    try:
        file = BoundedParquet(pa.BufferReader(data), SHARD_SCHEMA.names)
        check_origin(storage, name, file, manifest)
        for table in file.tables():
            rows = _rows(table, first)
            yield rows
            first += len(rows)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedError(storage, name, str(error).strip().split("\n")[0]) from error


def shard_table(data: pa.Buffer) -> pa.Table:
    """All rows of a shard that ``read_rows`` has checked, in the shard schema."""
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    return table.select(SHARD_SCHEMA.names).cast(SHARD_SCHEMA)


def checked_table(storage: Storage, name: str) -> pa.Table:
    """All rows of a shard in the shard schema. Raises DamagedError for bytes or rows that are not what was written."""
    data = read_checked(storage, name)
    for _ in read_rows(storage, name, data):
        pass
    return shard_table(data)


def _rows(table: pa.Table, first: int) -> Rows:
    columns = [one_array(table, name) for name in SHARD_SCHEMA.names]
    ids, prompt_tokens, token_ids, logprobs, byte_ends, complete = columns
    if not pc.all(pc.match_substring_regex(ids, "^[0-9a-f]{32}$"), min_count=0).as_py():
        raise ValueError("a completion id is not 32 lower-case hex digits")
    token_offsets, tokens = list_parts(token_ids)
    for column, values in (("logprobs", logprobs), ("byte_ends", byte_ends)):
        offsets, _ = list_parts(values)
        if not np.array_equal(offsets, token_offsets):
            raise ValueError(f"{column} and token_ids of a row differ in length")
    rows = Rows(
        first,
        ids,
        prompt_tokens.to_numpy(),
        token_offsets,
        tokens,
        list_parts(logprobs)[1],
        list_parts(byte_ends)[1],
        complete.to_numpy(zero_copy_only=False),
    )
    refused = impossible(rows.logprobs)
    if refused.any():
        raise ValueError(f"a log-prob is {rows.logprobs[refused][0]}: expected finite values up to 0")
    if (np.diff(rows.offsets) == 0).any():
        raise ValueError("a row has no tokens")
    falls = np.diff(rows.byte_ends) < 0
    falls[rows.offsets[1:-1] - 1] = False  # byte ends start again with each row
    if falls.any() or (rows.byte_ends < 0).any():
        raise ValueError("the byte ends of a row decrease")
    if (rows.token_ids < 0).any() or (rows.prompt_tokens < 0).any():
        raise ValueError("a token id or a count is negative")
    return rows


def one_array(table: pa.Table, name: str) -> pa.Array:
    """A column as one array of the schema's type, without nulls.

    Raises:
        ValueError, pa.ArrowException: where it is not.
    """
    if name not in table.column_names:
        raise ValueError(f"it has no column {name}")
    column = table.column(name)
    expected = SHARD_SCHEMA.field(name).type
    if column.type != expected:
        column = column.cast(expected)
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], expected)
    if array.null_count or (pa.types.is_list(expected) and array.values.null_count):
        raise ValueError(f"column {name} has nulls")
    return array


def list_parts(lists: pa.ListArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """A list array's offsets (N + 1,), from 0, and its values (T,)."""
    # By polars: pyarrow's own to_numpy imports pandas, where it is installed.
    offsets, values = (pl.Series(values=part).to_numpy() for part in (lists.offsets, lists.values))
    offsets = offsets.astype(np.int64)
    return offsets - offsets[0], values[offsets[0] : offsets[-1]]
