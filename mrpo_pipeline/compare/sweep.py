"""Which setting of a sweep each method is compared with: the one that does best on the third split."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrpo_pipeline.compare.job import RESULT
from mrpo_pipeline.compare.methods import Contender, settings_of
from mrpo_pipeline.compare.runs import Desk
from mrpo_pipeline.files.atomic import remove_folder

log = logging.getLogger("mrpo")

SWEEP = "sweep"


def choose(desk: Desk, entrants: list[Contender]) -> tuple[list[Contender], list[dict[str, Any]]]:
    """Each method at the setting that does best on the third split, with the first seed; and all that were tried."""
    recipe = desk.recipe
    metric, first = recipe.compare.metric, recipe.compare.seeds[0]
    desk.keep_choice()
    root = desk.folder / SWEEP
    tried = [[(point, desk.add(point, seeds=[first], root=root).jobs[0]) for point in settings_of(recipe, one)]
             for one in entrants]  # fmt: skip
    desk.run()
    desk.choice = ""
    chosen, told = [], []
    for one, points in zip(entrants, tried, strict=True):
        known = [
            (desk.outcome.results[job]["choice"][metric], point) for point, job in points if job in desk.outcome.results
        ]
        if not known:
            continue
        highest = max(figure for figure, _ in known)
        equal = [point for figure, point in known if figure == highest]
        # Where settings do equally well on the third split, the recipe's own is as good as any.
        best = next((point for point in equal if point.method == one.method), equal[0])
        for figure, point in known:
            told.append(
                {
                    "method": one.name,
                    "settings": dict(point.settings),
                    metric: figure,
                    "chosen": point is best,
                    "seed": first,
                }
            )
        chosen.append(replace(one, method=best.method, settings=best.settings))
        if best.settings:
            settings = ", ".join(f"{name} {value:g}" for name, value in best.settings.items())
            level = f" ({len(equal)} did equally well)" if len(equal) > 1 else ""
            log.info(
                "%s: of %d settings tried, the best on the third split is %s%s", one.name, len(known), settings, level
            )
        _take_over(root / best.name / f"seed-{first}", desk.folder / one.name / f"seed-{first}")
    return chosen, told


def _take_over(tried: Path, place: Path) -> None:
    """The run that a sweep made of the setting it chose is the method's run of that seed."""
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
