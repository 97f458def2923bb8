"""The references' log-probs of pairs by span, in blocks of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.targets.spans import PairSpans

# Pairs × references whose tokens are in memory at a time, and pairs whose spans are aggregated at a time.
BLOCK = 65_536
BATCH = 2_048


def completion_cuts(frame: pl.DataFrame, side: str) -> pl.DataFrame:
    """``completion_id`` and ``cut`` of one side of prepared pairs."""
    return frame.select(pl.col(f"{side}_id").alias("completion_id"), pl.col(f"{side}_cut").alias("cut"))


def distinct_of(frame: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
    """The distinct completions of N prepared pairs, sorted, and the index (2N,) of each chosen side, then of each rejected one."""
    asked = pl.concat([completion_cuts(frame, "chosen"), completion_cuts(frame, "rejected")])
    distinct = asked.unique().sort("completion_id", "cut", nulls_last=True)
    places = asked.join(
        distinct.with_row_index("at"), on=["completion_id", "cut"], how="left", nulls_equal=True, maintain_order="left"
    )
    return distinct, places["at"].to_numpy()


def pair_spans(frame: pl.DataFrame, caches: Sequence[ReferenceCache]) -> Iterator[PairSpans]:
    """The spans of N prepared pairs with every reference's log-probs, in order.

    Raises:
        UserError, RunError: see ``ReferenceCache.spans``.
    """
    size = max(BATCH, BLOCK // len(caches))
    for start in range(0, frame.height, size):
        block = frame.slice(start, size)
        distinct, places = distinct_of(block)
        spans = caches[0].spans(caches[1:], distinct)
        chosen, rejected = places[: block.height].astype(np.int64), places[block.height :].astype(np.int64)
        for at in range(0, block.height, BATCH):
            rows = slice(at, at + BATCH)
            yield PairSpans(spans.take(chosen[rows]), spans.take(rejected[rows]))
