"""The two sides of a pair behind one prompt: what both read first, and then each side's tokens, context among them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from mrpo_pipeline.dataset.ragged_ids import Ids, Mask
from mrpo_pipeline.rendering import Rendered


class Side(NamedTuple):
    """A side's tokens behind the shared prompt: (T,) ids, and which of them are scored, None where all are."""

    ids: Ids
    scored: Mask | None


def shared_tokens(a: Ids, b: Ids) -> int:
    """Number of leading ids that are the same in both."""
    shorter = min(len(a), len(b))
    differing = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differing[0]) if len(differing) else shorter


def with_shared_prompt(chosen: Rendered, rejected: Rendered) -> tuple[Ids, Side, Side]:
    """The ids that both prompts begin with, and each side from there on; the rest of its own prompt is context of it.

    A template may write a prompt in another way for another answer (a block of thinking, say). The shared prompt is empty where
    the first ids differ already.
    """
    shared = shared_tokens(chosen.prompt_ids, rejected.prompt_ids)
    return chosen.prompt_ids[:shared], _behind(chosen, shared), _behind(rejected, shared)


def _behind(side: Rendered, shared: int) -> Side:
    rest = side.prompt_ids[shared:]
    if not len(rest):
        return Side(side.completion_ids, side.scored)
    scored = np.ones(len(side.completion_ids), dtype=np.bool_) if side.scored is None else side.scored
    return Side(np.concatenate([rest, side.completion_ids]), np.concatenate([np.zeros(len(rest), np.bool_), scored]))


def own_prompts(frame: pl.DataFrame, side: str) -> list[list[int]]:
    """The ids that one side of each prepared pair reads before the first token that is scored."""
    columns = frame.select("prompt_ids", f"{side}_ids", f"{side}_scored").iter_rows()
    return [prompt + ids[: 0 if scored is None else scored.index(True)] for prompt, ids, scored in columns]


def scored_counts(frame: pl.DataFrame, side: str) -> pl.Series:
    """(N,) the scored tokens of one side of prepared pairs."""
    lengths = frame[f"{side}_ids"].list.len().cast(pl.Int64)
    scored = frame[f"{side}_scored"]
    if scored.null_count() == len(scored):
        return lengths
    return lengths.zip_with(scored.is_null(), scored.list.sum().cast(pl.Int64))
