"""Token ids of many texts in one flat array, so that a million pairs cost their tokens and not a million objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


class IdRows(Sequence[Ids]):
    """N rows of ids. A row is a view of the flat array, made when it is asked for.

    Args:
        ids: (T,) all rows one after another; may be mapped from a file.
        lengths: (N,) tokens of each row.
    """

    def __init__(self, ids: Ids, lengths: npt.NDArray[np.int64]) -> None:
        # A view that is a plain array: slices of a memory map are made many times slower.
        self.ids: Ids = np.asarray(ids).view(np.ndarray)
        self.lengths = np.array(lengths, dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        if len(self.ids) != (int(self._ends[-1]) if len(self._ends) else 0):
            raise ValueError(f"the rows' lengths add up to {int(self.lengths.sum())} and there are {len(self.ids)} ids")

    @classmethod
    def of(cls, rows: Sequence[Ids]) -> IdRows:
        """The rows put together; those that are together already as they stand."""
        if isinstance(rows, IdRows):
            return rows
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        return cls(np.concatenate([*rows, np.empty(0, np.int32)]).astype(np.int32, copy=False), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, row: int) -> Ids: ...
    @overload
    def __getitem__(self, row: slice) -> list[Ids]: ...
    def __getitem__(self, row: int | slice) -> Ids | list[Ids]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        end = int(self._ends[row])
        return self.ids[end - int(self.lengths[row]) : end]
