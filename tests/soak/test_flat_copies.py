"""The peak memory of `mrpo cache push` and `mrpo cache compact` does not grow with the rows."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from flatness import peak_growth

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.exports.publish_cache import push_cache

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from bench_cache_files import USUAL_SHARD, make_cache

FEW, MANY = 20_000, 300_000
# Each row keeps 8 bytes, and twice that while sorting. Records of all rows would take 100 bytes each, a frame 360.
BYTES_PER_ROW = 60


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a call is read from Linux's /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    found: dict[str, list[int]] = {"push": [], "compact": []}
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    for rows in (FEW, FEW, MANY):  # the first call loads libraries
        make_cache(source, rows, USUAL_SHARD, 4)
        found["push"].append(peak_growth(lambda: push_cache(source, target, without_ids=True)))
        cache = ReferenceCache.open(source, "r")
        found["compact"].append(peak_growth(cache.compact))
        assert cache.stats().rows == rows
        shutil.rmtree(source)
        shutil.rmtree(target)
    for name, (_, few, many) in found.items():
        assert many - few < BYTES_PER_ROW * (MANY - FEW), (name, few, many)
