"""Split a pair's tokens into the prompt that both sides share and the rest of each side, with a mask for context."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from mrpo_pipeline.dataset.ragged_ids import Ids, Mask
from mrpo_pipeline.rendering import Rendered


class Side(NamedTuple):
    """A side's tokens after the shared prompt: (T,) ids, and the mask of scored ones, None for all."""

    ids: Ids
    scored: Mask | None


def shared_tokens(a: Ids, b: Ids) -> int:
    """Length of the common prefix."""
    shorter = min(len(a), len(b))
    differing = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differing[0]) if len(differing) else shorter


def with_shared_prompt(chosen: Rendered, rejected: Rendered) -> tuple[Ids, Side, Side]:
    """The common prefix of both prompts, and each side from there on, with the rest of its prompt as context.

    A template may render a prompt differently for another answer (such as one with reasoning). The shared prompt is empty if
    the first ids differ.
    """
    shared = shared_tokens(chosen.prompt_ids, rejected.prompt_ids)
    return chosen.prompt_ids[:shared], _side_after(chosen, shared), _side_after(rejected, shared)


def _side_after(side: Rendered, shared: int) -> Side:
    rest = side.prompt_ids[shared:]
    if not len(rest):
        return Side(side.completion_ids, side.scored)
    scored = np.ones(len(side.completion_ids), dtype=np.bool_) if side.scored is None else side.scored
    return Side(np.concatenate([rest, side.completion_ids]), np.concatenate([np.zeros(len(rest), np.bool_), scored]))


def own_prompts(frame: pl.DataFrame, side: str) -> list[list[int]]:
    """The ids of one side of each prepared pair before its first scored token."""
    columns = frame.select("prompt_ids", f"{side}_ids", f"{side}_scored").iter_rows()
    return [prompt + ids[: 0 if scored is None else scored.index(True)] for prompt, ids, scored in columns]


def scored_counts(frame: pl.DataFrame, side: str) -> pl.Series:
    """(N,) the scored tokens of one side of prepared pairs."""
    lengths = frame[f"{side}_ids"].list.len().cast(pl.Int64)
    scored = frame[f"{side}_scored"]
    if scored.null_count() == len(scored):
        return lengths
    return lengths.zip_with(scored.is_null(), scored.list.sum().cast(pl.Int64))
