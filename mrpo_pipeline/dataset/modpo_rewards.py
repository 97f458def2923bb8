"""Rewards of the other objectives of the loss ``modpo``, from columns of the pairs file or from two cached references."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses.settings import Objective
from mrpo_pipeline.recipe import Method

Floats = npt.NDArray[np.float64]
SIDES = ("chosen", "rejected")


def check_objectives(method: Method, references: Sequence[str]) -> None:
    """Refuse invalid objectives before anything is read.

    Raises:
        UserError: naming the key.
    """
    if "modpo" not in method.losses:
        return
    if not method.modpo:
        raise UserError(
            "The loss is modpo (method.loss), but there is no objective beside the preference: expected one at least under "
            "method.modpo, such as `length: {weight: 0.3, chosen: COLUMN, rejected: COLUMN}`. Add it, or take another loss."
        )
    if method.first_weight <= 0:
        raise UserError(
            f"The weights of the objectives under method.modpo sum to {1 - method.first_weight:.4g}: expected less than 1, because the "
            "remainder is the preference's weight, by which the loss divides. Lower them."
        )
    for name, objective in method.modpo.items():
        columns, models = (objective.chosen, objective.rejected), (objective.tuned, objective.base)
        if not (all(columns) and not any(models)) and not (all(models) and not any(columns)):
            raise UserError(
                f"The objective method.modpo.{name} has {_given(objective)}: expected `chosen` and `rejected`, two columns of "
                "the pairs file, or `tuned` and `base`, two references. Give one of the two."
            )
        for key, reference in (("tuned", objective.tuned), ("base", objective.base)):
            if reference is not None and reference not in references:
                raise UserError(
                    f"The setting method.modpo.{name}.{key} is {reference!r}, but there is no reference of that name: expected "
                    f"one of {', '.join(references)}. Correct the name."
                )
        if objective.tuned is not None and objective.tuned == objective.base:
            raise UserError(
                f"The objective method.modpo.{name} has {objective.base!r} as tuned and as base: its reward would be 0 "
                "everywhere. Name two references."
            )


def objective_margins(method: Method, frame: pl.DataFrame, logps: Mapping[str, tuple[Floats, Floats]]) -> Floats | None:
    """Σ_{j≥2} w_j·(r_j(y_w) − r_j(y_l)) of each pair, (N,); None for losses other than ``modpo``.

    Args:
        frame: prepared pairs. logps: by reference, (chosen, rejected), (N,) each, in the unit of ``normalize``.

    Raises:
        UserError: for invalid objectives; for a row without the column or with a value that is not a finite number, with file
            and row.
    """
    if "modpo" not in method.losses:
        return None
    check_objectives(method, list(logps))
    margins = np.zeros(frame.height)
    for name, objective in method.modpo.items():
        if objective.tuned is not None and objective.base is not None:
            tuned, base = logps[objective.tuned], logps[objective.base]
            own = objective.beta * ((tuned[0] - base[0]) - (tuned[1] - base[1]))
        else:
            own = _column_margins(name, objective, frame)
        margins += objective.weight * own
    return margins


def _given(objective: Objective) -> str:
    keys = [key for key in ("chosen", "rejected", "tuned", "base") if getattr(objective, key) is not None]
    return " and ".join(keys) or "none of them"


def _column_margins(name: str, objective: Objective, frame: pl.DataFrame) -> Floats:
    margins = np.empty(frame.height)
    for at, (file, row, pair_in_row, extra) in enumerate(
        frame.select("file", "row", "pair_in_row", "extra").iter_rows()
    ):
        if pair_in_row:
            raise UserError(
                f"{file}, row {row}: this row makes several pairs (`completions` with ranks or scores), and the objective "
                f"method.modpo.{name} names one column for each side: expected rows of one pair. Write the pairs out, a row each."
            )
        values = json.loads(extra) if extra else {}
        sides = [
            _number(values, str(getattr(objective, side)), f"method.modpo.{name}.{side}", file, row) for side in SIDES
        ]
        margins[at] = sides[0] - sides[1]
    return margins


def _number(values: Mapping[str, object], column: str, key: str, file: str, row: int) -> float:
    value = values.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    # Nulls are not stored with a pair, and NaN is stored as null.
    found = "nothing, null or NaN" if value is None else repr(value)[:80]
    there = f" (columns with a value in that row: {', '.join(values)})" if values else ""
    raise UserError(
        f"{file}, row {row}: the column {column!r}, which {key} names, holds {found}: expected a finite number, the reward of "
        f"that side. Correct the row, or the column's name{there}."
    )
