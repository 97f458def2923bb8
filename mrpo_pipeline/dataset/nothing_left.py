"""Where no pair is left to work with, or few: the counted reasons, and the advice that belongs to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from mrpo_pipeline.errors import NothingLeftError
from mrpo_pipeline.recipe import Limits

# Fewer held-out pairs than this say little: one pair is more than 3% of an accuracy.
HANDFUL = 30

# What a reason says → what helps against it.
_ADVICE = (
    ("does not fit max_prompt_length", "Raise limits.max_prompt_length (--max-prompt-length)"),
    (
        "do not fit the context of",
        "Lower limits.max_length (--max-length), so that longer texts are cut to what each model reads",
    ),
    ("room within max_length|empty after the cut", "Raise limits.max_length (--max-length)"),
    ("equal after the cut", "Raise limits.max_length (--max-length): the sides differ only after the cut"),
    (
        "the policy's template",
        "Give the policy another template (policy.template): this one leaves completions out, or changes them",
    ),
    (
        "written by the template of",
        "Give that reference another template (references.NAME.template): this one leaves completions out, or changes them",
    ),
    (r"\bties?\b|no label", "Give pairs of which one side is known to be better"),
)
_OF_ROWS = "Correct these rows, or pairs.columns and pairs.strings, which say how rows are read"


def nothing_left(
    what: str, read: int, dropped: Mapping[str, int], rows: Mapping[str, int], hint: str = ""
) -> NothingLeftError:
    """The error for a split, or all of them, without a pair.

    Args:
        what: named in the message: ``train``, say.
        read: pairs that were read. dropped: those that were left out, by reason. rows: rows that gave no pair, by reason.
        hint: a sentence that knows more than the advice to the commonest reason.
    """
    reasons = [f"{count:,} dropped ({reason})" for reason, count in _by_count(dropped)]
    reasons += [f"{count:,} rows skipped ({reason})" for reason, count in _by_count(rows)]
    why = "; ".join(reasons) or "the files hold none"
    return NothingLeftError(
        f"Of {read:,} {what} pairs read, 0 are left: {why}. Nothing is done. {hint or advice(dropped, rows)}. Then run the same "
        "command again."
    )


def advice(dropped: Mapping[str, int], rows: Mapping[str, int]) -> str:
    """What helps against the commonest reason."""
    both = _by_count({**rows, **dropped})
    for reason, _ in both[:1]:
        for pattern, text in _ADVICE:
            if re.search(pattern, reason):
                name = re.search(r"of (\S+)$", reason)
                return text.replace("NAME", name[1]) if name else text
        return _OF_ROWS if reason in rows else "Look at the pairs"
    return "Name files that hold pairs"


def require_pairs(splits: Mapping[str, Any]) -> None:
    """Stop where none of the splits (``truncate.Prepared``) has a pair left.

    Raises:
        NothingLeftError: with the counted reasons.
    """
    if any(part.frame.height for part in splits.values()):
        return
    dropped, rows = (
        _together(one.dropped for one in splits.values()),
        _together(one.skipped_rows for one in splits.values()),
    )
    raise nothing_left(" and ".join(splits), sum(one.pairs_in for one in splits.values()), dropped, rows)


def handful(split: str, left: int, read: int) -> str | None:
    """What to report of few held-out pairs; None where there are enough."""
    if split != "eval" or not 0 < left < HANDFUL:
        return None
    return (
        f"Only {left:,} held-out pairs are left of {read:,}: one pair is {100 / left:.0f}% of an accuracy, and figures of so few say "
        "little."
    )


def short_context(
    name: str,
    context: int,
    limits: Limits,
    frames: Iterable[pl.DataFrame],
    unfit: pl.DataFrame,
    *,
    pairs: int | None = None,
) -> str | None:
    """What a reference's context costs, and the length that keeps every pair; None where it costs none.

    Args:
        context: tokens that the reference reads; a completion fits where prompt and completion are fewer.
        frames: of ``truncate.Prepared``, in the policy's tokens.
        unfit: ``completion_id`` and ``tokens``, the reference's, of prompt and completion.
        pairs: what ``frames`` are a sample of; they are all of them where None.
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
    share = sides.select((pl.col("policy") * (context - 1) / pl.col("tokens")).floor().min().cast(pl.Int64)).item()
    # Another tokenizer's tokens do not grow in step with the policy's.
    length = share if (sides["policy"] == sides["tokens"]).all() else int(share * 0.95)
    scale = 1 if pairs is None or not every.height else pairs / every.height
    about = "" if scale == 1 else "about "
    found = "null" if limits.max_length is None else limits.max_length
    text = (
        f"{name} reads {context:,} tokens, limits.max_length is {found}: {about}{round(left_out * scale):,} of "
        f"{round(every.height * scale):,} pairs are left out"
    )
    if length < 2:
        return text
    prompt = limits.max_prompt_length
    usual = limits.max_length is not None and prompt == limits.max_length // 2
    own = "" if usual or (prompt is not None and prompt < length) else f" --max-prompt-length {length // 2}"
    return f"{text}; --max-length {length}{own} keeps them, cut"


def expected_unfit(context: int, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Completions that would not fit a context by the policy's tokens: ``completion_id``, ``tokens``."""
    lengths = pl.concat([_lengths(frame) for frame in frames])
    return pl.concat(
        lengths.select(pl.col(f"{side}_id").alias("completion_id"), pl.col(f"{side}_length").alias("tokens"))
        for side in ("chosen", "rejected")
    ).filter(pl.col("tokens") > context - 1)


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


def _together(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    every: dict[str, int] = {}
    for one in counts:
        for reason, count in one.items():
            every[reason] = every.get(reason, 0) + count
    return every


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((reason, count) for reason, count in counts.items() if count), key=lambda one: -one[1])
