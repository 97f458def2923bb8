"""What a shard holds, and how its columns are encoded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mrpo_pipeline.errors import RunError

ROW_GROUP_ROWS = 10_000

# Under this key a shard's metadata says what its numbers were computed from, as the manifest does: a shard that came from
# another reference's folder is known by it. Shards of other writers may do without.
FINGERPRINT_KEY = b"mrpo.fingerprint"

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


# What rounding may put above 0, in nats; and what no model gives a token that it does not mask (the lowest finite float32).
HIGHEST_LOGP = 1e-3
LOWEST_LOGP = -1e6


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
    """A completion that a reference cannot read: it does not fit the context when scored up to ``cut``, or the reference's
    chat template does not write it (see ``unwritten``).

    Attributes:
        completion_id: 32 hex digits.
        cut: bytes of the completion that were wanted; None for the whole.
        tokens: tokens of prompt and completion that scoring it takes; 0 where the template does not write it.
        context: the reference's context length, in tokens, when that was found.
    """

    completion_id: str
    cut: int | None
    tokens: int
    context: int

    @classmethod
    def unwritten(cls, completion_id: str) -> Unfit:
        """Of a completion that the template does not write, however short it is cut and however long the context is."""
        return cls(completion_id, 0, 0, np.iinfo(np.int32).max)


class RefusedRowError(RunError):
    """A row that would put a wrong number into the cache: it names the completion and the likely cause."""


def impossible(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(T,) which log-probs no model gives: NaN and infinite ones, those above 0 by more than rounding, and those so low that
    they can but stand for a token that was masked."""
    return ~((logprobs > LOWEST_LOGP) & (logprobs <= HIGHEST_LOGP))


def why_impossible(logp: float) -> str:
    """The likely cause of such a number, in words."""
    if logp > HIGHEST_LOGP:
        return "expected 0 at most: what the engine gave is no log-prob (logits, or a fault in its kernels; try the other engine)"
    if logp <= LOWEST_LOGP:
        return (
            "expected a finite number, a few nats or tens: the model gives that token no chance at all. The usual causes are a "
            "tokenizer that is not the model's own, and a dtype whose range the model leaves (float16 for a model made in bfloat16)"
        )
    return (
        "expected a finite number: the usual causes are weights that hold NaN, and a dtype whose range the model leaves (float16 for "
        "a model made in bfloat16: set the reference's `dtype`)"
    )


def check_row(row: CompletionRow) -> None:
    """Refuse a row that would put a wrong number into the cache.

    Raises:
        RefusedRowError: for a malformed id, lists of unequal length or none at all, log-probs that no model gives (see
            ``impossible``), negative token ids or counts, byte ends that fall.
    """
    name = row.completion_id
    if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
        raise RefusedRowError(
            f"The completion id {name!r} is not 32 lower-case hex digits: such a row cannot be cached."
        )
    count = len(row.token_ids)
    if not count or len(row.logprobs) != count or len(row.byte_ends) != count:
        raise RefusedRowError(
            f"Completion {name} came back with {count} token ids, {len(row.logprobs)} log-probs and "
            f"{len(row.byte_ends)} byte ends: expected as many of each, and at least one. It was not cached; what was "
            "scored before it is kept."
        )
    refused = np.flatnonzero(impossible(row.logprobs))
    if len(refused):
        at = int(refused[0])
        raise RefusedRowError(
            f"The log-prob of token {at} of completion {name} (token id {row.token_ids[at]}) is {row.logprobs[at]}: "
            f"{why_impossible(float(row.logprobs[at]))}. It was not cached; what was scored before it is kept. Mend the cause, "
            "and run `mrpo score-refs` again."
        )
    if row.prompt_tokens < 0 or (row.token_ids < 0).any() or row.byte_ends[0] < 0 or (np.diff(row.byte_ends) < 0).any():
        raise RefusedRowError(
            f"The byte ends of completion {name} fall, or a count or token id is negative: expected byte ends that never fall. "
            "It was not cached; what was scored before it is kept. This is a fault in rendering: please report it."
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


def encode_shard(table: pa.Table, fingerprint: Mapping[str, str] | None = None) -> pa.Buffer:
    """A shard's bytes: zstd, row groups of about 10,000 rows, a checksum on every page.

    Args:
        fingerprint: the manifest's, kept in the file's metadata; none where not given.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=False,
        column_encoding=_ENCODINGS,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        if fingerprint is not None:
            writer.add_key_value_metadata({FINGERPRINT_KEY: json.dumps(dict(fingerprint), sort_keys=True)})
    return sink.getvalue()


def encode_plain(table: pa.Table) -> pa.Buffer:
    """The bytes of a small derived file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
