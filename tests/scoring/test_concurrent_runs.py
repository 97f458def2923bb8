"""Concurrent runs of `mrpo score-refs` on one cache: they see each other, and nothing is scored twice."""

from __future__ import annotations

import os
import time
from pathlib import Path

import polars as pl
import pytest

from mrpo_pipeline.cache.active_writers import ACTIVE, Other, register_run
from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.files.atomic import temporary_name
from mrpo_pipeline.scoring import concurrent_runs

MISSING = pl.DataFrame({"completion_id": [f"{i:032x}" for i in range(10)]})


class Cache:
    """A cache with the given completions."""

    def __init__(self) -> None:
        self.scored: set[str] = set()

    def unserved(self, wanted: pl.DataFrame) -> pl.DataFrame:
        return wanted.filter(~pl.col("completion_id").is_in(sorted(self.scored)))


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent_runs, "ALONE", {"transformers": 4})
    monkeypatch.setattr(concurrent_runs, "TOGETHER", 2)


def numbers(frame: pl.DataFrame) -> list[int]:
    return [int(identifier, 16) for identifier in frame["completion_id"]]


def test_alone_everything_is_scored_in_order() -> None:
    parts = [numbers(unit) for unit, _ in concurrent_runs.units("base", Cache(), MISSING, list, "transformers")]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_two_runs_meet_in_the_middle_and_leave_nothing_out(caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache()
    runs = [
        concurrent_runs.units("base", cache, MISSING, lambda first=first: [Other("process 7", first)], "transformers")
        for first in (False, True)
    ]
    done: list[list[int]] = [[], []]
    by_others = [0, 0]
    with caplog.at_level("INFO", logger="mrpo"):
        for at in (0, 1) * 5:
            for unit, others in runs[at]:
                done[at] += numbers(unit)
                by_others[at] += others
                cache.scored |= set(unit["completion_id"])
                break
    assert done == [[0, 1, 2, 3, 4, 5], [8, 9, 6, 7]]
    assert by_others == [4, 6]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "base is being scored into this cache by process 7 as well"
    ] * 2


def test_a_third_run_scores_in_random_order_and_leaves_nothing_out() -> None:
    before = [Other("process 7", True), Other("process 8", True)]
    parts = [
        numbers(unit) for unit, _ in concurrent_runs.units("base", Cache(), MISSING, lambda: before, "transformers")
    ]
    assert sorted(number for part in parts for number in part) == list(range(10)) and len(parts) == 5


def test_who_is_at_work_is_seen_until_it_ends_or_dies(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    with register_run(storage) as others:
        assert others() == []
        time.sleep(0.05)  # a file system's clock ticks in milliseconds
        with register_run(storage) as second:
            assert [other.came_first for other in second()] == [True]
            assert [other.came_first for other in others()] == [False]
            assert others()[0].name == f"process {os.getpid()}"
        assert others() == []
        dead = os.fork()
        if not dead:
            (tmp_path / ACTIVE / temporary_name()).touch()
            os._exit(0)
        os.waitpid(dead, 0)
        assert len(list((tmp_path / ACTIVE).iterdir())) == 2
        assert others() == []
        assert len(list((tmp_path / ACTIVE).iterdir())) == 1
    assert not (tmp_path / ACTIVE).exists()


def test_a_cache_that_cannot_say_who_is_there_is_scored_all_the_same(tmp_path: Path) -> None:
    (tmp_path / ACTIVE).write_text("a file in the folder's place")
    with register_run(LocalStorage(tmp_path)) as others:
        assert others() == []
