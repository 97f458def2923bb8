"""Weights by a column of the pairs, which selects one reference for each pair."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Method

_SHOWN = 8


def check_column(method: Method, names: Sequence[str], frames: Mapping[str, pl.DataFrame]) -> None:
    """Refuse a column or a value that no row of the pairs has.

    Args:
        names: of the references. frames: prepared pairs by split.

    Raises:
        UserError: naming the column or the value, and a row.
    """
    by = method.by_column(names)
    if by is None:
        return
    found = {split: Counter(_values(frame, by.column)) for split, frame in frames.items()}
    known = {file for split, frame in frames.items() if set(found[split]) - {None} for file in frame["file"].unique()}
    for split, frame in frames.items():
        if frame.height and not known.intersection(frame["file"].unique()):
            file, row, extra = frame.select("file", "row", "extra").row(0)
            there = f"the first, {file}, row {row}, has {', '.join(_loaded(extra)) or 'none beside the pair'}"
            raise UserError(
                f"The setting method.weights.column is {by.column!r}, and no row of the {split} pairs has a value there ({there}): "
                "expected a column of the pairs file that is not a part of the pair itself. Correct the name."
            )
    every = sum(found.values(), Counter[str | None]())
    for value in by.references if "train" in frames else ():
        if value not in every:
            likely = ", ".join(str(one) for one, _ in every.most_common() if one is not None)
            raise UserError(
                f"The setting method.weights.{value} names a value of the column {by.column!r}, and no row has it: expected one of the "
                f"values that are there ({likely[:200]}). Correct the value, or take it out."
            )


def chosen_references(method: Method, names: Sequence[str], frame: pl.DataFrame) -> npt.NDArray[np.int64] | None:
    """The index of each pair's reference, (N,); None if the weights are not by a column.

    Raises:
        UserError: for a row whose value has no reference, if there is no `other`; names file and row.
    """
    by = method.by_column(names)
    if by is None:
        return None
    positions = {value: names.index(name) for value, name in by.references.items()}
    other = None if by.other is None else names.index(by.other)
    values = _values(frame, by.column)
    found = [positions.get(value, other) if value is not None else other for value in values]
    if None in found:
        _refuse_unmatched(frame, values, found, by.column)
    return np.array(found, dtype=np.int64)


def _refuse_unmatched(
    frame: pl.DataFrame, values: Sequence[str | None], found: Sequence[int | None], column: str
) -> None:
    first = found.index(None)
    file, row = frame.select("file", "row").row(first)
    value = "nothing or null" if values[first] is None else repr(values[first])[:80]
    raise UserError(
        f"{file}, row {row}: the column {column!r}, which method.weights.column names, holds {value}, and no reference is given for it "
        f"(so in {found.count(None):,} of {len(found):,} pairs): expected a value under method.weights, or `other: REFERENCE` for "
        "the rest. Add it, or correct the row."
    )


def _values(frame: pl.DataFrame, column: str) -> list[str | None]:
    """The column's value of each pair as text; None for a row without one."""
    values = [None if extra is None else json.loads(extra).get(column) for extra in frame["extra"]]
    for at, value in enumerate(values):
        if isinstance(value, list | dict):
            file, row = frame.select("file", "row").row(at)
            raise UserError(
                f"{file}, row {row}: the column {column!r}, which method.weights.column names, holds {repr(value)[:80]}: expected text, "
                "a number, true or false. Correct the row, or name another column."
            )
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _loaded(extra: str | None) -> list[str]:
    return list(json.loads(extra))[:_SHOWN] if extra else []
