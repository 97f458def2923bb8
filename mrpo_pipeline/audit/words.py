"""Surprisal by word: the stretches of bytes on which references with different tokenizers can be set side by side.

Tokenizers part text at white space all but always, so that a word with the space before it is made of whole tokens in most
references; where it is not, a token's surprisal is spread evenly over its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.audit.sample import Floats, Ints, Texts, Tokens

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
