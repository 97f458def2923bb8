"""The completions whose single tokens are looked at: their texts, and what each reference's cache holds of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.pairs.completion import completion_text

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Texts:
    """R sampled completions, each once.

    ``frame`` has ``completion_id``, ``prompt`` (as it is read), ``completion``, ``cut`` (bytes that count; null for all).
    """

    frame: pl.DataFrame
    joined: npt.NDArray[np.uint8]
    """The bytes that count of all completions' canonical texts, end to end."""
    starts: Ints
    """(R + 1,) where each completion begins in ``joined``."""
    whole: Ints
    """(R,) bytes of each completion as given."""

    def __len__(self) -> int:
        return self.frame.height

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Texts:
        encoded = [completion_text(one).encode() for one in frame["completion"].to_list()]
        whole = np.array([len(text) for text in encoded], dtype=np.int64)
        counted = [text if cut is None else text[:cut] for text, cut in zip(encoded, frame["cut"], strict=True)]
        starts = np.concatenate([[0], np.cumsum([len(text) for text in counted], dtype=np.int64)]).astype(np.int64)
        return cls(frame, np.frombuffer(b"".join(counted), dtype=np.uint8), starts, whole)


@dataclass(frozen=True)
class Tokens:
    """What one reference's cache holds of the sampled completions; the tokens that count, end to end (T of them).

    The end-of-turn token counts where the whole completion does.
    """

    row: Ints
    """(T,) the completion, an index into the sample."""
    place: Ints
    """(T,) the token's number in its completion, from 0."""
    ids: npt.NDArray[np.int32]
    logps: npt.NDArray[np.float32]
    """(T,) nats."""
    ends: Ints
    """(T,) end of the token in its completion's bytes."""
    closing: Bools
    """(T,) whether it is an end-of-turn token."""
    starts: Ints
    """(R + 1,) where each completion begins in the arrays above."""
    prompt_tokens: Ints
    """(R,)"""
    last_end: Ints
    """(R,) where the last token of the row as cached ends; -1 where the row is not complete."""
    full_ids: list[npt.NDArray[np.int32]]
    """Each row's token ids as cached, also those that a cut leaves out."""

    @property
    def inner(self) -> Bools:
        """(T,) whether it is a token of the text, and no end-of-turn token."""
        return ~self.closing


def sample_pairs(frame: pl.DataFrame, pairs: int) -> pl.DataFrame:
    """At most so many pairs, spread evenly over the order of their identifiers' hashes: the same ones every time."""
    if frame.height <= pairs:
        return frame
    order = frame["pair_id"].hash(seed=0).arg_sort()
    return frame[order[:pairs].sort()]


def sample_texts(frame: pl.DataFrame) -> Texts:
    """The distinct completions of the pairs, up to the shortest cut that any of the pairs asks for."""
    sides = pl.concat(
        frame.select(
            pl.col(f"{side}_id").alias("completion_id"),
            pl.col("prompt_read").alias("prompt"),
            pl.col(side).alias("completion"),
            pl.col(f"{side}_cut").alias("cut"),
        )
        for side in SIDES
    )
    distinct = sides.group_by("completion_id", maintain_order=True).agg(
        pl.first("prompt", "completion"), pl.col("cut").min()
    )
    return Texts.of(distinct)


def read_tokens(cache: ReferenceCache, texts: Texts) -> Tokens:
    """What the cache holds of the sampled completions, from verified shards.

    Raises:
        RunError: for a shard that is damaged.
    """
    wanted = texts.frame.select("completion_id", "cut")
    rows = wanted.join(cache.rows(wanted), on="completion_id", how="left", maintain_order="left")
    lengths = rows["token_ids"].list.len().to_numpy().astype(np.int64)
    ids, logps, ends = (
        rows[name].explode(empty_as_null=False, keep_nulls=False).to_numpy()
        for name in ("token_ids", "logprobs", "byte_ends")
    )
    row = np.repeat(np.arange(len(texts)), lengths)
    first = np.cumsum(lengths) - lengths
    place = np.arange(len(row)) - first[row]
    complete = rows["complete"].to_numpy()
    closing = complete[row] & (place == lengths[row] - 1)
    cut = rows["cut"].fill_null(np.iinfo(np.int64).max).to_numpy()
    counts = (ends <= cut[row]) & ~(closing & rows["cut"].is_not_null().to_numpy()[row])
    kept = np.bincount(row[counts], minlength=len(texts))
    last = ends[first + lengths - 1].astype(np.int64)
    return Tokens(
        row=row[counts],
        place=place[counts],
        ids=ids[counts],
        logps=logps[counts],
        ends=ends[counts].astype(np.int64),
        closing=closing[counts],
        starts=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        prompt_tokens=rows["prompt_tokens"].to_numpy().astype(np.int64),
        last_end=np.where(complete, last, -1),
        full_ids=np.split(ids, first[1:]) if len(first) else [],
    )
