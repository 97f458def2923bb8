"""Token ids of many texts in one flat array, without an object for each text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


class RaggedRows(Sequence[npt.NDArray[T]], Generic[T]):
    """N rows of different lengths; each is a view of the flat array.

    Args:
        flat: (T,) all rows concatenated; may be memory-mapped.
        lengths: (N,) of each row.
    """

    dtype: ClassVar[type[np.generic]]

    def __init__(self, flat: npt.NDArray[T], lengths: npt.NDArray[np.int64]) -> None:
        # A plain array: slices of a memory map object are many times slower.
        self.flat: npt.NDArray[T] = np.asarray(flat).view(np.ndarray)
        self.lengths = np.array(lengths, dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        if len(self.flat) != (int(self._ends[-1]) if len(self._ends) else 0):
            raise ValueError(
                f"the rows' lengths add up to {int(self.lengths.sum())} and there are {len(self.flat)} values"
            )

    @classmethod
    def of(cls, rows: Sequence[npt.NDArray[T]]) -> Self:
        """The rows concatenated; a ``RaggedRows`` is returned as it is."""
        if isinstance(rows, cls):
            return rows
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        return cls(np.concatenate([*rows, np.empty(0, cls.dtype)]).astype(cls.dtype, copy=False), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, row: int) -> npt.NDArray[T]: ...
    @overload
    def __getitem__(self, row: slice) -> list[npt.NDArray[T]]: ...
    def __getitem__(self, row: int | slice) -> npt.NDArray[T] | list[npt.NDArray[T]]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        end = int(self._ends[row])
        return self.flat[end - int(self.lengths[row]) : end]


class IdRows(RaggedRows[np.int32]):
    """N rows of token ids."""

    dtype = np.int32


class MaskRows(RaggedRows[np.bool_]):
    """N masks of scored tokens; an empty row scores all tokens."""

    dtype = np.bool_

    def counts(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(N,) scored tokens of texts of these lengths."""
        before = np.concatenate([[0], np.cumsum(self.flat, dtype=np.int64)])
        return np.where(self.lengths > 0, before[self._ends] - before[self._ends - self.lengths], lengths)

    def firsts(self) -> Mask:
        """(N,) whether the first token of each text is scored."""
        firsts = np.ones(len(self), dtype=np.bool_)
        some = self.lengths > 0
        firsts[some] = self.flat[(self._ends - self.lengths)[some]]
        return firsts
