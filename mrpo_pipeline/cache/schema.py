"""The schema and encoding of shards, and the checks of a row."""

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

# Metadata key of the manifest's fingerprint, which identifies shards of another reference. Optional in shards of other writers.
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

# Token ids are plain: zstd finds repeated words (1.0 byte per token on English text), which deltas hide (1.7 bytes).
_ENCODINGS = {
    "prompt_tokens": "DELTA_BINARY_PACKED",
    "token_ids.list.element": "PLAIN",
    "logprobs.list.element": "BYTE_STREAM_SPLIT",
    "byte_ends.list.element": "DELTA_BINARY_PACKED",
}


# Nats: rounding may exceed 0 slightly; below the lowest, a token was masked (the lowest finite float32).
HIGHEST_LOGP = 1e-3
LOWEST_LOGP = -1e6


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """One completion scored by one reference.

    Attributes:
        completion_id: 32 hex digits.
        prompt_tokens: length of the prompt in this reference's tokens.
        token_ids: (T,) of the completion, end-of-turn token last when ``complete``.
        logprobs: (T,) nats, each given all tokens before it.
        byte_ends: (T,) end of each token in the completion's UTF-8 bytes, non-decreasing.
        complete: whether it was scored to its end-of-turn token.
    """

    completion_id: str
    prompt_tokens: int
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    byte_ends: npt.NDArray[np.int32]
    complete: bool


@dataclass(frozen=True, slots=True)
class Unfit:
    """A completion that a reference can't score: it exceeds the context up to ``cut``, or the chat template can't render it.

    Attributes:
        completion_id: 32 hex digits.
        cut: requested bytes of the completion; None for all.
        tokens: of prompt and completion; 0 where the template can't render it.
        context: the reference's context length in tokens at that time.
    """

    completion_id: str
    cut: int | None
    tokens: int
    context: int

    @classmethod
    def unwritten(cls, completion_id: str) -> Unfit:
        """A completion that the template can't render, at any cut and context length."""
        return cls(completion_id, 0, 0, np.iinfo(np.int32).max)


class RefusedRowError(RunError):
    """An invalid row; the message names the completion and the likely cause."""


def impossible(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(T,) which log-probs are impossible: NaN, infinite, above 0 by more than rounding, or as low as a masked token's."""
    return ~((logprobs > LOWEST_LOGP) & (logprobs <= HIGHEST_LOGP))


def why_impossible(logp: float) -> str:
    """The likely cause of an impossible log-prob."""
    if logp > HIGHEST_LOGP:
        return "expected 0 at most: the engine returned no log-prob (logits, or a faulty kernel; try the other engine)"
    if logp <= LOWEST_LOGP:
        return (
            "expected a finite number, some nats or tens: the model rules that token out. Usual causes: another model's tokenizer, or a "
            "dtype with too small a range (float16 for a bfloat16 model)"
        )
    return (
        "expected a finite number. Usual causes: NaN in the weights, or a dtype with too small a range (float16 for a bfloat16 model: set "
        "the reference's `dtype`)"
    )


def check_row(row: CompletionRow) -> None:
    """Check a row before it is cached.

    Raises:
        RefusedRowError: for a malformed id, empty lists or lists of unequal length, impossible log-probs (see ``impossible``),
            negative ids or counts, decreasing byte ends.
    """
    name = row.completion_id
    if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
        raise RefusedRowError(f"The completion id {name!r} is not 32 lower-case hex digits: the row can't be cached.")
    count = len(row.token_ids)
    if not count or len(row.logprobs) != count or len(row.byte_ends) != count:
        raise RefusedRowError(
            f"Completion {name} has {count} token ids, {len(row.logprobs)} log-probs and {len(row.byte_ends)} byte ends: expected the "
            "same number of each, at least one. It was not cached; earlier completions are kept."
        )
    refused = np.flatnonzero(impossible(row.logprobs))
    if len(refused):
        at = int(refused[0])
        raise RefusedRowError(
            f"The log-prob of token {at} of completion {name} (token id {row.token_ids[at]}) is {row.logprobs[at]}: "
            f"{why_impossible(float(row.logprobs[at]))}. It was not cached; earlier completions are kept. Fix the cause and run "
            "`mrpo score-refs` again."
        )
    if row.prompt_tokens < 0 or (row.token_ids < 0).any() or row.byte_ends[0] < 0 or (np.diff(row.byte_ends) < 0).any():
        raise RefusedRowError(
            f"Completion {name} has decreasing byte ends, or a negative count or token id. It was not cached; earlier completions are "
            "kept. This is a bug in rendering: please report it."
        )


def rows_to_table(rows: Sequence[CompletionRow]) -> pa.Table:
    """Rows as an Arrow table in the shard schema."""
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
    """The bytes of a shard: zstd, row groups of 10,000 rows, page checksums.

    Args:
        fingerprint: the manifest's, for the file's metadata.
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
