"""Select the setting of a sweep for each method: the best one on the third split."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrpo_pipeline.compare.job import RESULT, sums_file
from mrpo_pipeline.compare.methods import Contender, settings_of
from mrpo_pipeline.compare.metric_selection import metric_that_moves, with_references
from mrpo_pipeline.compare.results import clusters_of, outcomes_of
from mrpo_pipeline.compare.runs import Runs
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.evaluation.pair_outcomes import COMPARABLE
from mrpo_pipeline.files.atomic import remove_folder

log = logging.getLogger("mrpo")

SWEEP = "sweep"


def choose(
    runs: Runs, entrants: list[Contender], pairs: PreferenceExamples
) -> tuple[list[Contender], list[dict[str, Any]]]:
    """Each method at its best setting on the third split, with the first seed; and all settings that were tried.

    Args:
        pairs: of the third split, on which ``runs`` are evaluated.
    """
    first, root = runs.recipe.compare.seeds[0], runs.folder / SWEEP
    tried = [[(point, runs.add(point, seeds=[first], root=root).jobs[0]) for point in settings_of(runs.recipe, one)]
             for one in entrants]  # fmt: skip
    runs.execute()
    made = {point.name: Path(job.folder) for points in tried for point, job in points if job in runs.outcome.results}
    if runs.start_job not in runs.outcome.results or not made:
        return [], []
    metric, figures = _figures(runs, made, pairs, [point for points in tried for point, _ in points])
    runs.choice = ""
    chosen, tried_settings = [], []
    for one, points in zip(entrants, tried, strict=True):
        known = [point for point, _ in points if point.name in made]
        if not known:
            continue
        highest = max(figures[point.name][metric] for point in known) if metric else 0.0
        equal = [point for point in known if not metric or figures[point.name][metric] == highest]
        # Of settings that do equally well on the third split, prefer the recipe's own.
        best = next((point for point in equal if point.method == one.method), equal[0])
        tried_settings += [
            {
                "method": one.name,
                "settings": dict(point.settings),
                **figures[point.name],
                "metric": metric,
                "chosen": point is best,
                "seed": first,
            }
            for point in known
        ]
        chosen.append(replace(one, method=best.method, settings=best.settings))
        if best.settings and metric:
            settings = ", ".join(f"{name} {value:g}" for name, value in best.settings.items())
            level = f" ({len(equal)} did equally well)" if len(equal) > 1 else ""
            log.info(
                "%s: of %d settings tried, the best on the third split is %s%s", one.name, len(known), settings, level
            )
        _copy_run(made[best.name], runs.folder / one.name / f"seed-{first}")
    return chosen, tried_settings


def _figures(
    runs: Runs, made: Mapping[str, Path], pairs: PreferenceExamples, points: Sequence[Contender]
) -> tuple[str | None, dict[str, dict[str, float]]]:
    """The metric to select by, None if none is informative; and the share of the third split's pairs by setting and metric."""
    prompts = clusters_of(runs.splits["weights"].pairs.frame)
    folders = {name: [folder] for name, folder in made.items()}
    outcomes, _ = outcomes_of(Path(runs.start_job.folder), folders, pairs, prompts, sums_file(runs.choice))
    figures = {
        name: {metric: float(values.mean()) for metric, values in by.items()} for name, by in outcomes.methods.items()
    }
    requested = runs.recipe.compare.metric
    metric, why = metric_that_moves(with_references(outcomes, points), requested)
    if metric != requested:
        log.warning(
            "The sweep chooses by “%s”: training changed too few pairs of the third split in “%s” to distinguish settings.",
            COMPARABLE[metric], COMPARABLE[requested],
        )  # fmt: skip
    elif why:
        log.warning(
            "The sweep cannot choose: training changed too few pairs of the third split to distinguish settings. Each method keeps the "
            "recipe's own setting, or the first one tried. Train longer, or with a higher learning rate."
        )
        return None, figures
    return metric, figures


def _copy_run(tried: Path, place: Path) -> None:
    """Copy the sweep's run of the selected setting to the method's folder of that seed."""
    try:
        key = json.loads((tried / RESULT).read_text(encoding="utf-8"))["key"]
        if (place / RESULT).is_file() and json.loads((place / RESULT).read_text(encoding="utf-8")).get("key") == key:
            return
    except (OSError, ValueError, KeyError):
        return
    remove_folder(place)
    partial = place.with_name(f".{place.name}.partial")
    remove_folder(partial, ignore_errors=True)
    shutil.copytree(tried, partial)
    partial.rename(place)
