"""How many bytes a reference's shards will take: a sample of rows really encoded, the log-probs drawn.

Token ids, byte ends and completion ids are the real ones, and the encoder is the writer's own, so only the log-probs are
assumed. Of a float32 the low mantissa bits never compress; what does is sign, exponent and the highest mantissa bits (3.05 to
3.6 bytes of 4). How much depends on how the log-probs are spread, so they are drawn

- from the log-probs of the same reference, where its cache holds some;
- else from what models of its size give. A trained language model leaves about one nat a token, most tokens near 0 and a few
  far off: a Gamma distribution of shape 0.35 and mean 1. A model of a few million parameters knows next to nothing: normal,
  5.5 ± 2.2 nats. Between 30 and 300 million parameters, some of each. The total is off by up to 3% where a model is unlike its
  size (a tiny one that knows its little world by heart, a large one with random weights).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.cache.schema import CompletionRow, encode_shard, rows_to_table

Floats = npt.NDArray[np.float32]

ENCODED_TOKENS = 4_000_000  # at most so many are really encoded
PAGE_TOKENS = (1 << 20) // 4  # Parquet's pages hold 1 MiB before they are compressed, each by itself
# How far off the bytes of a token may be, as a share: with log-probs that are assumed, and with the reference's own.
ASSUMED_ERROR, KNOWN_ERROR = 0.03, 0.01
_KNOWS_NOTHING, _KNOWS = 30e6, 300e6
# Log-probs are a sum of exponentials' logarithm away from 0, and such a sum is known to 2⁻²³ of itself.
_STEP = 2.0**-23


@dataclass(frozen=True, slots=True)
class RowToScore:
    """A completion as it will stand in a shard, but for its log-probs."""

    completion_id: str
    prompt_tokens: int
    token_ids: npt.NDArray[np.int32]
    byte_ends: npt.NDArray[np.int32]
    complete: bool


def drawn_logps(count: int, parameters: int | None, known: Floats | None, seed: int = 0) -> Floats:
    """Log-probs (count,) as a model of that size may give them, or spread as those that are known.

    Args:
        parameters: of the model; None where that is unknown, which is taken for a trained model of ordinary size.
        known: (n,) log-probs that this reference gave already.
    """
    random = np.random.default_rng(seed)
    if known is not None and len(known):
        spread = np.sort(known.astype(np.float64))
        # Between neighbours, so that no value comes twice: real ones hardly ever do.
        drawn = np.interp(random.random(count) * (len(spread) - 1), np.arange(len(spread)), spread)
    else:
        size = math.log((parameters or _KNOWS) / _KNOWS_NOTHING) / math.log(_KNOWS / _KNOWS_NOTHING)
        trained = random.random(count) < min(max(size, 0.0), 1.0)
        drawn = -np.where(trained, random.gamma(0.35, 1 / 0.35, count), np.abs(random.normal(5.5, 2.2, count)))
    return (np.round(drawn / _STEP) * _STEP).astype(np.float32)


def bytes_per_token(
    rows: Sequence[RowToScore],
    *,
    rows_per_shard: int,
    parameters: int | None,
    known: Floats | None = None,
    tokens_per_shard: float | None = None,
) -> float:
    """Bytes of shards for each completion token, everything in the shards included.

    zstd finds more repetition the more there is to look at, up to a page of the file. Where the rows are a sample that does
    not fill the shards there will be, half of them tells what a doubling saves.

    Args:
        rows: whole shards, in the order in which stage one writes them, or a sample of rows in that order.
        known: see ``drawn_logps``.
        tokens_per_shard: that there will be; None where the rows are whole shards.
    """
    whole = _encoded(rows, rows_per_shard, parameters, known)
    have = sum(len(row.token_ids) for row in rows[:rows_per_shard])
    wanted = min(tokens_per_shard or 0.0, PAGE_TOKENS)
    if wanted <= have or len(rows) < 2:
        return whole
    saved_by_doubling = max(0.0, _encoded(rows[::2], rows_per_shard, parameters, known) - whole)
    return whole - saved_by_doubling * math.log2(wanted / have)


def _encoded(rows: Sequence[RowToScore], rows_per_shard: int, parameters: int | None, known: Floats | None) -> float:
    size = tokens = 0
    for start in range(0, len(rows), rows_per_shard):
        shard = rows[start : start + rows_per_shard]
        counts = [len(row.token_ids) for row in shard]
        logps = np.split(drawn_logps(sum(counts), parameters, known, start), np.cumsum(counts)[:-1])
        table = rows_to_table(
            [
                CompletionRow(row.completion_id, row.prompt_tokens, row.token_ids, part, row.byte_ends, row.complete)
                for row, part in zip(shard, logps, strict=True)
            ]
        )
        size += encode_shard(table).size
        tokens += sum(counts)
    return size / tokens if tokens else 0.0
