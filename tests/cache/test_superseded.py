"""Superseded rows (those with a better row of the same completion), against the best rows of the complete coverage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scored_rows import cache_at, row, write

from mrpo_pipeline.cache import ReferenceCache, superseded
from mrpo_pipeline.cache.coverage import best_rows


@pytest.fixture
def cache(tmp_path: Path) -> ReferenceCache:
    """63 rows of up to 25 completions in shards of seven: complete and truncated, of many lengths, some equal."""
    found, random = cache_at(tmp_path), np.random.default_rng(0)
    for _ in range(9):
        drawn = [random.integers([0, 1, 1, 0], [25, 4, 4, 2]).tolist() for _ in range(7)]
        write(
            found, [row(number, [-1.0] * tokens, [end] * tokens, bool(whole)) for number, tokens, end, whole in drawn]
        )
    return found


@pytest.mark.parametrize("at_once", [1, 3, 1000])
@pytest.mark.parametrize("alike", [False, True])
def test_they_are_all_but_the_best(
    cache: ReferenceCache, monkeypatch: pytest.MonkeyPatch, at_once: int, alike: bool
) -> None:
    """Also if different completions have equal keys, and if the repeated keys are processed in parts."""
    monkeypatch.setattr(superseded, "AT_ONCE", at_once)
    names, manifest = cache.storage.list("shards"), cache.manifest()
    keys = {name: superseded.shard_keys(cache.storage, name, manifest) for name in names}
    if alike:
        keys = {name: own % np.uint64(3) for name, own in keys.items()}
    found = superseded.superseded_rows(cache.storage, keys, manifest)
    every = cache._coverage.rows()
    expected = every.join(best_rows(every), on=["shard", "row"], how="anti").sort("shard", "row")
    assert expected.height
    assert {(name, int(one)) for name, rows in found.items() for one in rows} == set(
        expected.select("shard", "row").rows()
    )
    assert all((np.diff(rows) > 0).all() for rows in found.values())
    assert cache.stats().completions == every.height - expected.height == every["completion_id"].n_unique()
