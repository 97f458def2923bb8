"""Messages for splits with no pairs or few: the counted reasons, and the remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from mrpo_pipeline.dataset.drop_reasons import advice
from mrpo_pipeline.errors import NothingLeftError
from mrpo_pipeline.pairs.counts import Counts
from mrpo_pipeline.recipe import Limits

# With fewer held-out pairs, one pair is more than 3% of an accuracy.
FEW_PAIRS = 30


def nothing_left(what: str, counts: Iterable[Counts], hint: str = "") -> NothingLeftError:
    """The error for a split, or several, without a pair.

    Args:
        what: the split's name in the message.
        hint: a sentence in place of the general advice on the most frequent reason.
    """
    dropped, rows, read = Counter[str](), Counter[str](), 0
    for one in counts:
        dropped.update(one.dropped)
        rows.update(one.skipped_rows)
        read += one.read
    reasons = [f"{count:,} dropped ({reason})" for reason, count in dropped.most_common() if count]
    reasons += [f"{count:,} rows skipped ({reason})" for reason, count in rows.most_common() if count]
    why = "; ".join(reasons) or "the files hold none"
    return NothingLeftError(
        f"Of {read:,} {what} pairs read, 0 are left: {why}. Nothing was done. {hint or advice(dropped, rows)}. Then run the same "
        "command again."
    )


def require_pairs(splits: Mapping[str, Any]) -> None:
    """Stop if none of the splits (``truncate.Prepared``) has a pair left.

    Raises:
        NothingLeftError: with the counted reasons.
    """
    if not any(part.frame.height for part in splits.values()):
        raise nothing_left(" and ".join(splits), [part.counts for part in splits.values()])


def few_pairs_notice(split: str, counts: Counts) -> str | None:
    """A notice on few held-out pairs; None if there are enough."""
    if split != "eval" or not 0 < counts.used < FEW_PAIRS:
        return None
    return (
        f"Only {counts.used:,} held-out pairs are left of {counts.read:,}: one pair is {100 / counts.used:.0f}% of an accuracy, so "
        "metrics are imprecise."
    )


def short_context(
    name: str,
    context: int,
    limits: Limits,
    frames: Iterable[pl.DataFrame],
    unfit: pl.DataFrame,
    *,
    pairs: int | None = None,
    spare: int = 1,
    outcome: str = "are left out",
) -> str | None:
    """A notice on the pairs that do not fit a model's context, with the length that keeps them; None if all fit.

    Args:
        context: the model's context length, in tokens.
        frames: of ``truncate.Prepared``, in the policy's tokens.
        unfit: ``completion_id`` and ``tokens`` (the model's tokens of prompt and completion).
        pairs: the number of all pairs if ``frames`` are a sample.
        spare: positions that prompt and completion leave free: an engine generates one token to score a text.
        outcome: what happens to these pairs.
    """
    every = pl.concat([_lengths(frame) for frame in frames])
    long = (
        unfit.filter(pl.col("tokens") > 0)
        .select("completion_id", pl.col("tokens").cast(pl.Int64))
        .unique("completion_id")
    )
    sides = pl.concat(
        every.with_row_index("pair").select(
            "pair", pl.col(f"{side}_id").alias("completion_id"), pl.col(f"{side}_length").alias("policy")
        )
        for side in ("chosen", "rejected")
    ).join(long, on="completion_id")
    left_out = sides["pair"].n_unique()
    if not left_out:
        return None
    share = sides.select((pl.col("policy") * (context - spare) / pl.col("tokens")).floor().min().cast(pl.Int64)).item()
    # Tokens of another tokenizer are not proportional to the policy's.
    length = share if (sides["policy"] == sides["tokens"]).all() else int(share * 0.95)
    scale = 1 if pairs is None or not every.height else pairs / every.height
    about = "" if scale == 1 else "about "
    found = "null" if limits.max_length is None else limits.max_length
    text = (
        f"{name} reads {context:,} tokens, limits.max_length is {found}: {about}{round(left_out * scale):,} of "
        f"{round(every.height * scale):,} pairs {outcome}"
    )
    if length < 2:
        return text
    prompt = limits.max_prompt_length
    usual = limits.max_length is not None and prompt == limits.max_length // 2
    own = "" if usual or (prompt is not None and prompt < length) else f" --max-prompt-length {length // 2}"
    return f"{text}; --max-length {length}{own} keeps them, cut"


def expected_unfit(context: int, frames: Iterable[pl.DataFrame], *, spare: int = 1) -> pl.DataFrame:
    """Completions that do not fit a context by the policy's tokens: ``completion_id``, ``tokens``."""
    lengths = pl.concat([_lengths(frame) for frame in frames])
    return pl.concat(
        lengths.select(pl.col(f"{side}_id").alias("completion_id"), pl.col(f"{side}_length").alias("tokens"))
        for side in ("chosen", "rejected")
    ).filter(pl.col("tokens") > context - spare)


def _lengths(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(
        "chosen_id",
        "rejected_id",
        *(
            (pl.col("prompt_tokens").cast(pl.Int64) + pl.col(f"{side}_ids").list.len())
            .cast(pl.Int64)
            .alias(f"{side}_length")
            for side in ("chosen", "rejected")
        ),
    )
