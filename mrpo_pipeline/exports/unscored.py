"""Pairs that another trainer can't take: it scores every token of a side, and theirs hold context among them."""

import polars as pl

UNSCORED = "a side holds tokens that are not scored (a tool's result between two messages, or a prompt written otherwise for one side)"


def holds_unscored(frame: pl.DataFrame) -> pl.Series:
    """(N,) whether prepared pairs have tokens that are not scored behind the prompt that both sides share."""
    masks = pl.col("chosen_scored").is_not_null() | pl.col("rejected_scored").is_not_null()
    return frame.select(masks).to_series()
