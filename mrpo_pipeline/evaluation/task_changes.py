"""The difference of two models on the same documents of the same tasks, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.evaluation.intervals import mean_known
from mrpo_pipeline.evaluation.tasks import TaskScores
from mrpo_pipeline.files.atomic import whole_file


@dataclass(frozen=True)
class TaskChange:
    """One metric of one task, before and after.

    ``low`` and ``high`` bound the difference (after − before) over other documents like these, at 95 %; ``p`` is two-sided. They
    are None for a metric that is not a mean over documents (a perplexity, the average of a group of tasks).
    """

    task: str
    metric: str
    filter: str
    documents: int | None
    before: float
    after: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    higher_is_better: bool | None
    num_fewshot: int | None
    version: Any

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def task_changes(before: TaskScores, after: TaskScores) -> list[TaskChange]:
    """All metrics that both have, paired by document.

    Raises:
        RunError: if the two have different documents.
    """
    changes = []
    for figure, start in before.values.items():
        if figure not in after.values:
            continue
        task, metric, reading = figure
        about = before.about[task]
        difference = after.values[figure] - start
        low = high = p = None
        count = about["documents"]
        if figure in before.documents and figure in after.documents:
            low, high, p = _interval(figure[0], before.documents[figure], after.documents[figure])
            count = len(before.documents[figure])
        changes.append(
            TaskChange(
                task, metric, reading, count, start, after.values[figure], difference, low, high, p,
                before.higher_is_better.get(figure), about["num_fewshot"], about["version"],
            )
        )  # fmt: skip
    return changes


def _interval(
    task: str, before: dict[tuple[int, str], float], after: dict[tuple[int, str], float]
) -> tuple[float, float, float]:
    if before.keys() != after.keys():
        raise RunError(
            f"The task {task} was asked of the two models with other documents: expected the same ids and texts. Its data changed "
            "between the two; evaluate again."
        )
    differences = np.array([after[at] - before[at] for at in before], dtype=np.float64)
    scale = max(1.0, float(np.abs(differences).max()))  # metrics other than shares, such as BLEU, exceed 1
    known = mean_known(differences[:, None] / scale, np.arange(len(differences)))
    return known.low * scale, known.high * scale, known.p


def write_answers(scores: Mapping[str, TaskScores], folder: Path) -> None:
    """Write the models' answers to ``folder/TASK.parquet``: one row for each document, model and reading of the answer."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in dict.fromkeys(task for each in scores.values() for task in each.answers):
        rows = [{"model": name, **row} for name, each in scores.items() for row in each.answers.get(task, [])]
        with whole_file(folder / f"{task.replace('/', '_')}.parquet") as temporary:
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(temporary)


def table_of(changes: list[TaskChange]) -> str:
    """A plain table for the terminal."""
    lines = [f"{'task':30}{'metric':28}{'documents':>10}{'before':>10}{'after':>10}{'difference':>12}   95 %"]
    for change in changes:
        name = change.metric if change.filter == "none" else f"{change.metric} ({change.filter})"
        known = "" if change.low is None or change.high is None else f"   {change.low:+.4f} to {change.high:+.4f}"
        worse = "  (lower is better)" if change.higher_is_better is False else ""
        lines.append(
            f"{change.task:30}{name:28}{change.documents if change.documents is not None else '':>10}"
            f"{change.before:10.4f}{change.after:10.4f}{change.difference:+12.4f}{known}{worse}"
        )
    return "\n".join(lines)
