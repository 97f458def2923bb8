"""Tables of the downstream tasks that ``mrpo evaluate --tasks`` measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from mrpo_pipeline.report.comparison_tables import Cell, Columns, Names, Row, Table, known
from mrpo_pipeline.report.formatting import count, fixed, real
from mrpo_pipeline.report.results_folder import Folder


def task_tables(folder: Folder) -> list[Table]:
    """A table for each metric of each task."""
    names = Names(folder)
    found: dict[tuple[str, ...], list[Row]] = {}
    documents: dict[tuple[str, ...], float | None] = {}
    for method in folder.document.methods:
        own: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for change in [change for run in folder.runs.get(method.name, []) for change in run.tasks]:
            own.setdefault(tuple(str(change.get(key)) for key in ("task", "metric", "filter")), []).append(change)
        for figure, changes in own.items():
            if row := _task_row(names.method(method.name), changes):
                found.setdefault(figure, []).append(row)
                documents[figure] = real(changes[0].get("documents"))
    columns: Columns = [
        "Method",
        ("Before", ""),
        ("After", ""),
        ("Difference", "seeds below"),
        ("95% interval", "one seed"),
    ]
    tables = []
    for (task, metric, reading), rows in found.items():
        title = f"{task}: {metric}" + ("" if reading in ("none", "None", "") else f" ({reading})")
        asked = documents[task, metric, reading]
        tables.append(Table(f"{title}, {count(asked)} documents" if asked else title, columns, rows))
    return tables


def _task_row(name: Cell, changes: list[dict[str, Any]]) -> Row | None:
    before, after = (known(real(one.get(key)) for one in changes) for key in ("before", "after"))
    if not before or len(before) != len(after):
        return None
    differences = np.subtract(after, before)
    several = len(after) > 1
    span = f"{_change(differences.min())} to {_change(differences.max())}" if several else ""
    low, high = (real(changes[0].get(key)) for key in ("low", "high"))
    interval = "–" if several or low is None or high is None else f"{_change(low)} to {_change(high)}"
    means = [_task_figure(float(np.mean(values))) for values in (before, after)]
    return [name, *means, Cell(_change(differences.mean()), span), interval]


def _task_figure(value: float) -> str:
    """Shares in per cent; other values (such as a perplexity) unchanged."""
    return fixed(100 * value, 1) if abs(value) <= 1 else fixed(value, 2)


def _change(value: float) -> str:
    return f"{'+' if value > 0 else ''}{_task_figure(float(value))}"
