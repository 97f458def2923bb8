"""Which completions are computed again: some of every length, the longest among them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl


def draw_across_lengths(lengths: npt.NDArray[np.int64], count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Places of ``count`` items: one drawn from each of ``count`` equal parts of the items in order of length.

    Of the last part the longest item itself is taken: what only long contexts show (positions, windows, memory) shows there.

    Args:
        lengths: (N,).
        count: all N are taken where it is not smaller than N.
        seed: the same lengths and seed give the same places.

    Returns:
        (min(count, N),) places, by rising length.
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
    """Rows of ``served`` drawn across the bytes of prompt and completion (as far as it counts), whatever their order.

    Args:
        served: ``completion_id``, ``prompt``, ``completion``, ``cut`` (bytes; null for the whole).
    """
    size = pl.coalesce("cut", pl.col("completion").str.len_bytes().cast(pl.Int64))
    ordered = served.with_columns(size=size + pl.col("prompt").str.len_bytes().cast(pl.Int64)).sort(
        "size", "completion_id"
    )
    places = draw_across_lengths(ordered["size"].to_numpy(), count, seed)
    picked: pl.DataFrame = ordered.drop("size")[places.tolist()]
    return picked
