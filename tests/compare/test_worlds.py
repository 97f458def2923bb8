"""Two worlds with a known truth and real training: in one both references are needed, in the other one of them only harms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_worlds import make_models, recipe_of

from mrpo_pipeline.compare import compare_recipe
from mrpo_pipeline.scoring import score_references


def compared(folder: Path, world: str, items: int, **changes: Any) -> Any:
    models = make_models(folder, world, items=items, steps=150, more=100)
    recipe = recipe_of(folder, models, items=items, **changes)
    score_references(recipe)
    return compare_recipe(recipe)


@pytest.mark.slow
def test_a_reference_that_only_harms_is_told_from_what_it_does_and_named(tmp_path: Path) -> None:
    found = compared(tmp_path, "second_harms", 12)
    assert (found.verdict.kind, found.verdict.against, found.verdict.drop) == ("worse", "dpo-base", ["braggart"])


@pytest.mark.slow
def test_where_each_reference_knows_its_own_half_several_do_better_than_any_one(tmp_path: Path) -> None:
    """With one seed, to be fast: no significance is claimed, but the figures are far apart. benchmarks/bench_worlds.py uses three."""
    found = compared(
        tmp_path, "both_needed", 24, compare={"seeds": [0], "methods": {"multi-dpo": {"name": "multi-dpo"}}}
    )
    assert (found.verdict.kind, found.verdict.method, found.verdict.drop) == ("one seed", "multi-dpo", [])
    against = [
        one for one in found.as_dict()["comparisons"] if one["method"] == "multi-dpo" and one["against"] != "start"
    ]
    own = [one for one in against if one["metric"] == "accuracy/policy" and one["against"] != "simpo"]
    assert len(own) == 3 and all(one["low"] > 0.02 for one in own)
