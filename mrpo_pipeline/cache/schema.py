"""What a shard holds, and how its columns are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mrpo_pipeline.errors import RunError

ROW_GROUP_ROWS = 10_000

SHARD_SCHEMA = pa.schema(
    [
        ("completion_id", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("byte_ends", pa.list_(pa.int32())),
        ("complete", pa.bool_()),
    ]
)

UNFIT_SCHEMA = pa.schema(
    [
        ("completion_id", pa.string()),
        ("cut", pa.int64()),
        ("tokens", pa.int32()),
        ("context", pa.int32()),
    ]
)

# Token ids stay plain: zstd finds their repeated words itself (1.0 byte a token on English text), where deltas hide
# them (1.7 bytes), and every Parquet reader knows the encoding.
_ENCODINGS = {
    "prompt_tokens": "DELTA_BINARY_PACKED",
    "token_ids.list.element": "PLAIN",
    "logprobs.list.element": "BYTE_STREAM_SPLIT",
    "byte_ends.list.element": "DELTA_BINARY_PACKED",
}


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """One completion as one reference scored it.

    Attributes:
        completion_id: 32 hex digits.
        prompt_tokens: tokens of the prompt as this reference reads it.
        token_ids: (T,) the completion's tokens, the end-of-turn token last when ``complete``.
        logprobs: (T,) log-prob of each token given everything before it, in nats.
        byte_ends: (T,) end of each token in the completion's UTF-8 bytes, never falling.
        complete: whether the whole completion and its end-of-turn token were scored.
    """

    completion_id: str
    prompt_tokens: int
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    byte_ends: npt.NDArray[np.int32]
    complete: bool


@dataclass(frozen=True, slots=True)
class Unfit:
    """A completion that does not fit a reference's context when scored up to ``cut``.

    Attributes:
        completion_id: 32 hex digits.
        cut: bytes of the completion that were wanted; None for the whole.
        tokens: tokens of prompt and completion that scoring it takes.
        context: the reference's context length, in tokens, when that was found.
    """

    completion_id: str
    cut: int | None
    tokens: int
    context: int


def check_row(row: CompletionRow) -> None:
    """Refuse a row that would put a wrong number into the cache.

    Raises:
        RunError: for a malformed id, lists of unequal length or none at all, log-probs that are not finite, byte ends
            that fall.
    """
    name = row.completion_id
    if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
        raise RunError(f"The completion id {name!r} is not 32 lower-case hex digits: such a row cannot be cached.")
    count = len(row.token_ids)
    if not count or len(row.logprobs) != count or len(row.byte_ends) != count:
        raise RunError(
            f"Completion {name} came back with {count} token ids, {len(row.logprobs)} log-probs and "
            f"{len(row.byte_ends)} byte ends: expected as many of each, and at least one. It was not cached; what was "
            "scored before it is kept."
        )
    if not np.isfinite(row.logprobs).all():
        at = int(np.flatnonzero(~np.isfinite(row.logprobs))[0])
        raise RunError(
            f"The log-prob of token {at} of completion {name} is {row.logprobs[at]}: expected a finite number. The usual "
            "causes are weights that hold NaN, or a dtype whose range the model leaves (float16 for a model made in "
            "bfloat16). It was not cached; what was scored before it is kept. Set the reference's `dtype` and run "
            "`mrpo score-refs` again."
        )
    if row.prompt_tokens < 0 or row.byte_ends[0] < 0 or (np.diff(row.byte_ends) < 0).any():
        raise RunError(
            f"The byte ends of completion {name} fall, or a count is negative: expected byte ends that never fall. It "
            "was not cached; what was scored before it is kept. This is a fault in rendering: please report it."
        )


def rows_to_table(rows: Sequence[CompletionRow]) -> pa.Table:
    """Rows as one Arrow table of the shard schema."""
    lengths = np.fromiter((len(row.token_ids) for row in rows), np.int32, len(rows))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())

    def lists(values: list[npt.NDArray[np.int32]] | list[npt.NDArray[np.float32]], kind: type) -> pa.Array:
        joined = np.concatenate(values) if values else np.empty(0)
        return pa.ListArray.from_arrays(offsets, pa.array(joined.astype(kind, copy=False)))

    return pa.Table.from_arrays(
        [
            pa.array([row.completion_id for row in rows], pa.string()),
            pa.array([row.prompt_tokens for row in rows], pa.int32()),
            lists([row.token_ids for row in rows], np.int32),
            lists([row.logprobs for row in rows], np.float32),
            lists([row.byte_ends for row in rows], np.int32),
            pa.array([bool(row.complete) for row in rows], pa.bool_()),
        ],
        schema=SHARD_SCHEMA,
    )


def encode_shard(table: pa.Table) -> pa.Buffer:
    """A shard's bytes: zstd, row groups of about 10,000 rows, a checksum on every page."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        use_dictionary=False,
        column_encoding=_ENCODINGS,
        write_page_checksum=True,
    )
    return sink.getvalue()


def encode_plain(table: pa.Table) -> pa.Buffer:
    """The bytes of a small derived file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
