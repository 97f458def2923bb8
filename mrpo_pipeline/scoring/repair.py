"""Set damaged files of a cache aside and score their content again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mrpo_pipeline.cache import ReferenceCache, list_references
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.scoring.run import score_references

log = logging.getLogger("mrpo")


@dataclass(frozen=True)
class Repaired:
    """One reference: ``damaged`` maps each damaged file to its fault, ``set_aside`` lists where they are now, ``rescored`` counts
    completions; None if the recipe has no pairs to score, or not this reference."""

    reference: str
    damaged: dict[str, str]
    set_aside: list[str]
    rescored: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def repair_cache(recipe: Recipe, *, only: Sequence[str] = ()) -> list[Repaired]:
    """Set every damaged file of the recipe's cache aside, and score its content again.

    Files are set aside before anything is scored: after an interruption, ``mrpo score-refs`` continues.

    Args:
        only: names of references; if empty, all in the cache.

    Returns:
        the references that had damaged files.
    """
    found = []
    for name in list(only) or list_references(recipe.cache):
        cache = ReferenceCache.open(recipe.cache, name)
        # A file that the system can't read may be sound: it stays, and `mrpo cache verify` reports it.
        reports = [report for report in cache.verify() if not report.unread]
        damaged = {report.name: report.problem for report in reports if report.problem is not None}
        if damaged:
            found.append(Repaired(name, damaged, cache.set_aside(list(damaged)), None))
            log.warning("%s: %s damaged files are set aside.", name, f"{len(damaged):,}")
    if recipe.pairs.train is None and recipe.pairs.eval is None:
        return found
    named = [one.reference for one in found if one.reference in recipe.references]
    scored = {report.name: report.scored for report in score_references(recipe, only=named)} if named else {}
    return [Repaired(one.reference, one.damaged, one.set_aside, scored.get(one.reference)) for one in found]
