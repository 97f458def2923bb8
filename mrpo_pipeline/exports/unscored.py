"""Pairs that another trainer can't take: it scores every token of a side, and theirs hold context among them."""

import polars as pl

UNSCORED = "a side holds tokens that are not scored (a tool's result between two messages, or a prompt written otherwise for one side)"


def holds_unscored(frame: pl.DataFrame) -> pl.Series:
    """(N,) whether prepared pairs have tokens that are not scored behind the prompt that both sides share."""
    masks = [name for name in ("chosen_scored", "rejected_scored") if name in frame.columns]
    unscored = pl.repeat(False, frame.height, eager=True)
    for name in masks:
        unscored |= frame[name].is_not_null()
    return unscored
