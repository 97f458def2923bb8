"""Draw the completions to recompute: across lengths, the longest included."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl


def draw_across_lengths(lengths: npt.NDArray[np.int64], count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Indices of ``count`` items: one from each of ``count`` equal parts of the items sorted by length, and the longest item.

    The longest shows faults of long contexts (positions, windows, memory).

    Args:
        lengths: (N,).
        count: all N if it is not smaller than N.
        seed: of the draw.

    Returns:
        (min(count, N),) indices, by increasing length.
    """
    order = np.argsort(lengths, kind="stable")
    if count >= len(order):
        return order
    if count < 1:
        return order[:0]
    draw = np.random.default_rng(seed)
    picked = [int(draw.choice(part)) for part in np.array_split(order, count)]
    picked[-1] = int(order[-1])
    return np.array(picked, dtype=np.int64)


def draw_completions(served: pl.DataFrame, count: int, seed: int = 0) -> pl.DataFrame:
    """Rows of ``served`` drawn across the bytes of prompt and completion (up to its cut), independent of their order.

    Args:
        served: ``completion_id``, ``prompt``, ``completion``, ``cut`` (bytes; null for all).
    """
    size = pl.coalesce("cut", pl.col("completion").str.len_bytes().cast(pl.Int64))
    ordered = served.with_columns(size=size + pl.col("prompt").str.len_bytes().cast(pl.Int64)).sort(
        "size", "completion_id"
    )
    places = draw_across_lengths(ordered["size"].to_numpy(), count, seed)
    picked: pl.DataFrame = ordered.drop("size")[places.tolist()]
    return picked
