"""What references show side by side: whether the same stretches of text are hard for them, and whether one is another's copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.audit.sample import Floats, Ints, Texts, Tokens
from mrpo_pipeline.audit.statistics import NONE, correlation, ranks, without_means

_OFTEN = 3  # a word that stands so often in the sample has a mean of its own


@dataclass(frozen=True)
class Likeness:
    """Two references on the sampled completions.

    Attributes:
        hard_words: rank correlation of the nats that they spend per byte on the same words.
        hard_places: the same once each word's own mean is taken away: whether the same words are hard for both in the same
            places. Skill lowers both; numbers of other texts or ids leave nothing of the second.
        same_ids: share of completions with the same token ids in both.
        same_numbers: share of completions with the very same log-probs.
        apart: mean difference in nats per token, over completions with the same ids; NaN where there are none.
        apart_to_spread: its root mean square over the log-probs' standard deviation.
    """

    hard_words: float
    hard_places: float
    same_ids: float
    same_numbers: float
    apart: float
    apart_to_spread: float


def likenesses(every: Sequence[Tokens], texts: Texts) -> dict[tuple[int, int], Likeness]:
    """Each two references, by their positions."""
    if len(every) < 2:
        return {}
    words = words_of(texts)
    rates = [ranks(surprisal(tokens, texts, words) / words.size) for tokens in every]
    placed = [without_means(rate, words.kind) for rate in rates]
    found = {}
    for a in range(len(every)):
        for b in range(a + 1, len(every)):
            often = placed[a][1] >= _OFTEN
            found[a, b] = Likeness(
                hard_words=correlation(rates[a], rates[b]),
                hard_places=correlation(placed[a][0][often], placed[b][0][often]),
                **_same(every[a], every[b]),
            )
    return found


def _same(one: Tokens, other: Tokens) -> dict[str, float]:
    completions = len(one.starts) - 1
    ids = numbers = 0
    gaps, values = [], []
    for at in range(completions):
        mine, theirs = (slice(tokens.starts[at], tokens.starts[at + 1]) for tokens in (one, other))
        same_ids = np.array_equal(one.full_ids[at], other.full_ids[at])
        ids += same_ids
        numbers += np.array_equal(one.logps[mine], other.logps[theirs])
        if same_ids and len(one.logps[mine]) == len(other.logps[theirs]):
            gaps.append(one.logps[mine].astype(np.float64) - other.logps[theirs])
            values.append(one.logps[mine])
    joined = np.concatenate(gaps) if gaps else np.empty(0)
    spread = float(np.concatenate(values).std()) if len(joined) else 0.0
    return {
        "same_ids": ids / completions if completions else NONE,
        "same_numbers": numbers / completions if completions else NONE,
        "apart": float(np.abs(joined).mean()) if len(joined) else NONE,
        "apart_to_spread": float(np.sqrt(np.square(joined).mean()) / spread) if spread > 0 else NONE,
    }


_SPACES = (9, 10, 13, 32)
_LONGEST, _PIECE = 24, 12  # bytes: text without spaces (Chinese, long numbers) is cut into pieces


@dataclass(frozen=True)
class Words:
    """W words of the sampled completions, in the order of the text."""

    row: Ints
    """(W,) the completion."""
    place: Ints
    """(W,) the word's number in its completion, from 0."""
    start: Ints
    """(W,) where it begins in ``Texts.joined``, the white space before it included."""
    end: Ints
    kind: Ints
    """(W,) the same number for the same bytes."""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def size(self) -> Ints:
        """(W,) bytes."""
        return self.end - self.start


def words_of(texts: Texts) -> Words:
    """The words of the sampled completions."""
    data = texts.joined
    space = np.isin(data, _SPACES)
    begins = np.zeros(len(data), dtype=np.bool_)
    begins[1:] = space[1:] & ~space[:-1]
    begins[texts.starts[:-1][np.diff(texts.starts) > 0]] = True
    start = np.flatnonzero(begins)
    end = np.append(start[1:], len(data))
    pieces = np.where(end - start > _LONGEST, -(-(end - start) // _PIECE), 1)
    nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = np.repeat(start, pieces) + nth * _PIECE
    end = np.append(start[1:], len(data))
    row = np.searchsorted(texts.starts, start, side="right") - 1
    first = np.flatnonzero(np.diff(row, prepend=-1))
    place = np.arange(len(row)) - np.repeat(first, np.diff(np.append(first, len(row))))
    raw = data.tobytes()
    numbers: dict[bytes, int] = {}
    kind = np.fromiter(
        (
            numbers.setdefault(raw[low:high], len(numbers))
            for low, high in zip(start.tolist(), end.tolist(), strict=True)
        ),
        np.int64,
        len(start),
    )
    return Words(row, place, start.astype(np.int64), end.astype(np.int64), kind)


def surprisal(tokens: Tokens, texts: Texts, words: Words) -> Floats:
    """(W,) nats that a reference spends on each word; end-of-turn tokens belong to none."""
    inner = tokens.inner
    ends = texts.starts[tokens.row[inner]] + tokens.ends[inner]
    spent = np.concatenate([[0.0], -np.cumsum(tokens.logps[inner], dtype=np.float64)])
    ends = np.concatenate([[0], ends])
    result: Floats = _spent_at(words.end, ends, spent) - _spent_at(words.start, ends, spent)
    return result


def _spent_at(at: Ints, ends: npt.NDArray[np.int64], spent: Floats) -> Floats:
    """Nats spent up to a byte: all tokens that end there or before, and the share of the one that reaches over it."""
    done = np.searchsorted(ends, at, side="right") - 1
    over = np.minimum(done + 1, len(ends) - 1)
    width = np.maximum(ends[over] - ends[done], 1)
    result: Floats = spent[done] + (spent[over] - spent[done]) * np.clip((at - ends[done]) / width, 0, 1)
    return result
