"""Small shards merged into large ones: fewer files, the same numbers, whenever it is killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from places import FolderPlace, Place
from scored_rows import cache_at, row, wanted, write

from mrpo_pipeline.cache import DamagedError, ReferenceCache
from mrpo_pipeline.cache.local_storage import LocalStorage

ROWS = [row(number, np.linspace(-number - 1, -0.5, 3), [1, 2, 2], True) for number in range(50)]
ASKED = wanted([*((number, None) for number in range(50)), (3, 1)])


def small_shards(place: Place) -> ReferenceCache:
    cache = cache_at(place.root)
    write(cache, [row(7, [-9.0], [1], False)])
    write(cache, ROWS, rows_per_shard=3)
    return cache


def test_fewer_shards_serve_the_same(place: Place) -> None:
    cache = small_shards(place)
    before, rows = cache.sums(ASKED), cache.rows(ASKED).sort("completion_id")
    done = cache.compact(20)
    assert (done.joined, done.written) == (18, 3) and len(place.names("base/shards")) == 3
    again = ReferenceCache.open(place.root, "base")
    assert again.sums(ASKED).equals(before) and again.rows(ASKED).sort("completion_id").equals(rows)
    assert again.stats().rows == 50  # the superseded row is gone
    assert not [report.problem for report in again.verify() if report.problem]


def test_large_shards_are_left(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, ROWS[:30], rows_per_shard=10)
    before = place.files("base/shards")
    assert cache.compact(20).joined == 0 and place.files("base/shards") == before


def test_one_killed_before_it_removes_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = FolderPlace(tmp_path / "place")
    cache = small_shards(place)
    before = cache.sums(ASKED)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            cache.compact(20)
    cache = ReferenceCache.open(place.root, "base")
    assert cache.sums(ASKED).equals(before)
    cache.compact(20)
    assert len(place.names("base/shards")) <= 6
    assert ReferenceCache.open(place.root, "base").sums(ASKED).equals(before)


def test_a_damaged_shard_stops_it_and_nothing_is_removed(place: Place) -> None:
    cache = small_shards(place)
    name = place.names("base/shards")[4]
    data = place.files(name)[name]
    place.write(name, data[:50] + bytes([data[50] ^ 1]) + data[51:])
    names = set(place.names("base/shards"))
    with pytest.raises(DamagedError, match="is damaged"):
        cache.compact(1000)
    assert names <= set(place.names("base/shards"))


def test_rows_beside_a_large_shard_are_kept(tmp_path: Path) -> None:
    """The large shard is not read, even if it is damaged."""
    place = FolderPlace(tmp_path / "place")
    cache = cache_at(place.root)
    write(cache, ROWS[:20])
    (large,) = place.names("base/shards")
    write(cache, ROWS[:6], rows_per_shard=3)
    cache.compact(30)
    place.delete(large)
    assert ReferenceCache.open(place.root, "base").sums(wanted([(number, None) for number in range(6)])).height == 6


def test_shards_of_another_writer_are_joined_too(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "place")
    cache = small_shards(place)
    before = cache.sums(ASKED)
    (tmp_path / "made.parquet").unlink(missing_ok=True)
    cache.rows(wanted([(5, None)])).select(reversed(cache.rows(ASKED).columns)).with_columns(
        text=pl.lit("x")
    ).write_parquet(tmp_path / "made.parquet")
    cache.storage.put("shards", (tmp_path / "made.parquet").read_bytes())
    cache.compact(20)
    assert ReferenceCache.open(place.root, "base").sums(ASKED).equals(before)
