"""verify, stats, prune and remove."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from places import Place
from scored_rows import cache_at, row, wanted, write

from mrpo_pipeline.cache import Unfit


def test_stats_count_each_completion_once(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0], [2], False), row(2, [-3.0, -1.0], [2, 2], True)])
    write(cache, [row(1, [-1.0, -2.0, -6.0], [2, 4, 4], True), row(3, [-7.0], [2], False)])
    cache.mark_unfit([Unfit("0" * 32, None, 9, 8)])
    stats = cache.stats()
    assert (stats.shards, stats.rows, stats.completions, stats.complete, stats.tokens, stats.unfit) == (
        2,
        4,
        3,
        2,
        6,
        1,
    )
    assert stats.nats_per_token == pytest.approx(20 / 6)
    assert stats.size == sum(len(data) for data in place.files("base/shards").values())


def test_stats_of_nothing(place: Place) -> None:
    stats = cache_at(place.root).stats()
    assert stats.rows == stats.tokens == 0
    assert stats.nats_per_token != stats.nats_per_token


def test_prune_removes_only_unused_files(place: Place) -> None:
    cache = cache_at(place.root)
    (short,) = write(cache, [row(1, [-1.0], [2], False), row(2, [-1.0], [2], False)])
    (full,) = write(cache, [row(1, [-1.0, -2.0], [2, 2], True)])
    assert cache.prune().shards == 0  # completion 2 is in the first only
    asked = wanted([(1, 2), (2, 2)])
    cache.sums(asked)
    (rest,) = write(cache, [row(2, [-1.0, -4.0], [2, 2], True)])
    before = cache.sums(asked)
    removed = cache.prune()
    assert (removed.shards, removed.sums) == (1, 2)
    assert set(place.files("base/shards")) == {f"base/{full}", f"base/{rest}"}
    assert short not in (full, rest)
    assert cache.sums(asked).equals(before)
    assert cache.prune().sums == 0


def test_prune_keeps_one_of_two_equal_shards(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0, -2.0], [2, 2], True)])
    write(cache, [row(1, [-1.0, -2.1], [2, 2], True)])
    served = cache.rows(wanted([(1, None)]))
    assert cache.prune().shards == 1
    assert cache.rows(wanted([(1, None)])).equals(served)


def test_prune_never_trusts_a_damaged_shard(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0], [2], False)])
    (full,) = write(cache, [row(1, [-1.0, -2.0], [2, 2], True)])
    place.write(f"base/{full}", place.files()[f"base/{full}"][:-1] + b"x")
    assert cache.prune().shards == 0
    assert len(place.files("base/shards")) == 2


def test_remove_deletes_the_files_of_one_reference_only(place: Place) -> None:
    cache_at(place.root, "base2")
    cache = cache_at(place.root)
    write(cache, [row(number, [-1.0], [2], True) for number in range(20)], rows_per_shard=1)
    cache.sums(wanted([(1, None)]))
    cache.mark_unfit([Unfit("0" * 32, None, 9, 8)])
    cache.remove()
    assert list(place.files()) == ["base2/manifest.json"]
    cache.remove()


def test_remove_follows_no_link_and_leaves_no_folder(tmp_path: Path) -> None:
    cache_at(tmp_path, "other")
    cache = cache_at(tmp_path)
    write(cache, [row(1, [-1.0], [2], True)])
    cache.sums(wanted([(1, None)]))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    os.symlink(outside, tmp_path / "base" / "link")
    cache.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "outside"]
    assert (outside / "kept").exists()
    cache.remove()
