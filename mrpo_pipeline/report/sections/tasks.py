"""Downstream tasks, where ``mrpo evaluate --tasks`` measured the comparison's adapters."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mrpo_pipeline.report.formatting import count, fixed, one_line
from mrpo_pipeline.report.palette import method_styles
from mrpo_pipeline.report.reference_plots import real
from mrpo_pipeline.report.results_folder import Folder
from mrpo_pipeline.report.sections.tables import Cell, Column, Row, name_cell


@dataclass
class TasksSection:
    """A table for each figure of each task."""

    columns: list[Column] = field(default_factory=list)
    groups: list[tuple[str, list[Row]]] = field(default_factory=list)


def tasks_section(folder: Folder) -> TasksSection | None:
    """From ``METHOD/seed-N/evaluation.json``; None where no run has any task."""
    styles = method_styles(folder.names)
    figures: dict[tuple[str, str, str], list[Row]] = {}
    documents: dict[tuple[str, str, str], float | None] = {}
    for method in folder.document.methods:
        own: dict[tuple[str, str, str], list[dict[str, object]]] = {}
        for run in folder.runs.get(method.name, []):
            for change in run.tasks:
                figure = (str(change.get("task")), str(change.get("metric")), str(change.get("filter")))
                own.setdefault(figure, []).append(change)
        for figure, changes in own.items():
            before, after = (
                [value for one in changes if (value := real(one.get(key))) is not None] for key in ("before", "after")
            )
            if not before or len(before) != len(after):
                continue
            differences = np.subtract(after, before)
            span = (
                f"{_figure(differences.min(), sign=True)} to {_figure(differences.max(), sign=True)}"
                if len(after) > 1
                else ""
            )
            low, high = (real(changes[0].get(key)) for key in ("low", "high"))
            interval = (
                f"{_figure(low, sign=True)} to {_figure(high, sign=True)}"
                if low is not None and len(after) == 1
                else "–"
            )
            cells = [
                name_cell(method.name, styles[method.name], hollow=method.baseline),
                Cell(_figure(float(np.mean(before)))),
                Cell(_figure(float(np.mean(after)))),
                Cell(_figure(float(differences.mean()), sign=True), below=span),
                Cell(interval),
            ]
            figures.setdefault(figure, []).append(Row(cells))
            documents[figure] = real(changes[0].get("documents"))
    if not figures:
        return None
    section = TasksSection()
    section.columns = [
        Column("Method"),
        Column("Before", number=True),
        Column("After", number=True),
        Column("Difference", "seeds below", number=True),
        Column("95% interval", "one seed", number=True),
    ]
    for figure, rows in figures.items():
        task, metric, reading = (one_line(part) for part in figure)
        title = f"{task}: {metric}" + ("" if reading in ("none", "None", "") else f" ({reading})")
        asked = documents[figure]
        section.groups.append((f"{title}, {count(asked)} documents" if asked else title, rows))
    return section


def _figure(value: float | None, *, sign: bool = False) -> str:
    """Shares as per cent, other figures (a perplexity) as they are."""
    if value is None:
        return "–"
    text = fixed(100 * value, 1) if abs(value) <= 1 else fixed(value, 2)
    return f"+{text}" if sign and value > 0 else text
