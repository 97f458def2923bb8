"""The completions whose tokens are examined: their texts, and what each reference's cache holds of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import completion_text

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Texts:
    """R distinct sampled completions.

    Attributes:
        frame: ``completion_id``, ``prompt``, ``completion``, ``cut`` (bytes that count; null for all).
        joined: the bytes that count, of all canonical texts, concatenated.
        lengths: (R,) bytes of each canonical text without its cut.
    """

    frame: pl.DataFrame
    joined: npt.NDArray[np.uint8]
    lengths: Ints

    def __len__(self) -> int:
        return self.frame.height

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Texts:
        encoded = [completion_text(one).encode() for one in frame["completion"].to_list()]
        counted = b"".join(text[:cut] for text, cut in zip(encoded, frame["cut"], strict=True))
        return cls(frame, np.frombuffer(counted, dtype=np.uint8), np.array([len(text) for text in encoded], np.int64))


@dataclass(frozen=True)
class Tokens:
    """The cached tokens of one reference on the R sampled completions: the T that count, concatenated.

    The end-of-turn token counts where the completion has no cut.

    Attributes:
        row: (T,) index of the completion. position: (T,) index of the token in its completion.
        ids: (T,). logps: (T,) nats.
        end_of_turn: (T,) whether it is an end-of-turn token.
        starts: (R + 1,) where each completion begins in the arrays above.
        prompt_tokens: (R,).
        last_end: (R,) byte end of the last cached token; -1 where the row is not complete.
        full_ids: the cached ids of each row, without a cut.
    """

    row: Ints
    position: Ints
    ids: npt.NDArray[np.int32]
    logps: npt.NDArray[np.float32]
    end_of_turn: Bools
    starts: Ints
    prompt_tokens: Ints
    last_end: Ints
    full_ids: list[npt.NDArray[np.int32]]


def sample_pairs(frame: pl.DataFrame, pairs: int) -> pl.DataFrame:
    """At most this many pairs, always the same ones, by the hash of their id."""
    if frame.height <= pairs:
        return frame
    order = frame["pair_id"].hash(seed=0).arg_sort()
    return frame[order[:pairs].sort()]


def sample_texts(frame: pl.DataFrame) -> Texts:
    """The distinct completions of the pairs, each with the shortest cut of its pairs."""
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
    """The cached tokens of the sampled completions, from verified shards.

    Raises:
        RunError: for a shard that is damaged.
        UserError: for a cache without token ids.
    """
    manifest = cache.manifest()
    if manifest is not None and manifest.ids_withheld:
        raise UserError(
            f"Reference {cache.name} at {cache.location} was published without its token ids, which the audit compares with the text: "
            "expected a cache that holds them. Audit it where it was scored, or leave the reference out."
        )
    wanted = texts.frame.select("completion_id", "cut")
    rows = wanted.join(cache.rows(wanted), on="completion_id", how="left", maintain_order="left")
    lengths = rows["token_ids"].list.len().to_numpy().astype(np.int64)
    ids, logps, ends = (
        rows[name].explode(empty_as_null=False, keep_nulls=False).to_numpy()
        for name in ("token_ids", "logprobs", "byte_ends")
    )
    row = np.repeat(np.arange(len(texts)), lengths)
    first = np.cumsum(lengths) - lengths
    position = np.arange(len(row)) - first[row]
    complete = rows["complete"].to_numpy()
    end_of_turn = complete[row] & (position == lengths[row] - 1)
    cut = rows["cut"].fill_null(np.iinfo(np.int64).max).to_numpy()
    counts = (ends <= cut[row]) & ~(end_of_turn & rows["cut"].is_not_null().to_numpy()[row])
    kept = np.bincount(row[counts], minlength=len(texts))
    last = ends[first + lengths - 1].astype(np.int64)
    return Tokens(
        row=row[counts],
        position=position[counts],
        ids=ids[counts],
        logps=logps[counts],
        end_of_turn=end_of_turn[counts],
        starts=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        prompt_tokens=rows["prompt_tokens"].to_numpy().astype(np.int64),
        last_end=np.where(complete, last, -1),
        full_ids=np.split(ids, first[1:]) if len(first) else [],
    )
