"""The index of what many shards cover: opened by one read, and never used for a shard whose file has changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from places import Place
from scored_rows import cache_at, row, wanted, write

from mrpo_pipeline.cache import DamagedError, ReferenceCache, coverage
from mrpo_pipeline.cache.coverage_index import INDEX
from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.cache.object_storage import ObjectStorage

MANY = 6
COUNT = 2 * (MANY + 6)
ASKED = wanted([*((number, None) for number in range(COUNT)), (3, 1), (999, None)])


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MANY", MANY)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards opened in this block."""
    names: list[str] = []
    for kind in (LocalStorage, ObjectStorage):

        def counted(self: LocalStorage, name: str, original: object = kind.open) -> pa.NativeFile:
            names.append(name)
            return original(self, name)  # type: ignore[operator]

        monkeypatch.setattr(kind, "open", counted)
    return names


def many_shards(place: Place) -> ReferenceCache:
    cache = cache_at(place.root)
    rows = [row(number, np.linspace(-number - 1, -0.5, 3), [1, 2, 2], number % 5 > 0) for number in range(COUNT)]
    write(cache, rows, rows_per_shard=2)
    return cache


def missing(place: Place) -> list[str]:
    return sorted(ReferenceCache.open(place.root, "base").missing(ASKED)["completion_id"])


def test_the_second_opening_opens_no_shard_and_finds_the_same(place: Place, opened: list[str]) -> None:
    cache = many_shards(place)
    first = cache.missing(ASKED)
    assert len(opened) == len(place.names("base/shards")) == COUNT // 2
    assert len(place.names(f"base/{INDEX}")) == 1
    opened.clear()
    again = ReferenceCache.open(place.root, "base")
    assert again.missing(ASKED).equals(first) and again._coverage.rows().sort("completion_id").equals(
        cache._coverage.rows().sort("completion_id")
    )
    assert opened == []
    assert again.stats() == cache.stats()


def test_shards_that_come_and_go_are_seen(place: Place, opened: list[str]) -> None:
    cache = many_shards(place)
    before = missing(place)
    gone = place.names("base/shards")[7]
    lost = cache._coverage.rows().filter(shard=gone.removeprefix("base/"))["completion_id"].to_list()
    place.delete(gone)
    write(cache_at(place.root), [row(999, [-1.0, -2.0], [1, 1], True)])
    opened.clear()
    assert set(missing(place)) == (set(before) | set(lost)) - {row(999, [-1.0], [1], True).completion_id}
    assert len(opened) == 1  # the new one


def test_a_shard_whose_file_is_another_is_read_again(place: Place, tmp_path: Path) -> None:
    cache = many_shards(place)
    before = missing(place)
    name, other = sorted(place.names("base/shards"))[5:7]  # of two equal rows the first is used
    path = tmp_path / "place" / name
    times = path.stat() if path.exists() else None
    held = cache._coverage.rows().filter(shard=name.removeprefix("base/"))["completion_id"].to_list()
    place.write(name, place.files(other)[other])
    if times is not None:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the change time (ctime) stays that of the change
    assert set(missing(place)) == set(before) | set(held)
    with pytest.raises(DamagedError, match="is damaged"):
        ReferenceCache.open(place.root, "base").rows(ASKED)


@pytest.mark.parametrize("fault", ["a flipped byte", "no parquet", "another manifest"])
def test_an_index_that_is_not_sound_or_of_another_manifest_is_not_used(
    place: Place, opened: list[str], fault: str
) -> None:
    many_shards(place)
    before = missing(place)
    (name,) = place.names(f"base/{INDEX}")
    data = place.files(name)[name]
    if fault == "another manifest":
        place.delete(name)
        place.write(name.replace("/1-", "/1-0"), data)
    else:
        place.write(name, data[:90] + bytes([data[90] ^ 1]) + data[91:] if fault == "a flipped byte" else b"no parquet")
    opened.clear()
    assert missing(place) == before
    assert len(opened) == COUNT // 2
    assert len(place.names(f"base/{INDEX}")) == 1  # rebuilt, and the old one removed


def test_prune_removes_an_index_that_is_not_sound_and_keeps_a_sound_one(place: Place) -> None:
    cache = many_shards(place)
    missing(place)
    (name,) = place.names(f"base/{INDEX}")
    cache.prune()
    assert place.names(f"base/{INDEX}") == [name]
    place.write(name, b"")
    ReferenceCache.open(place.root, "base").prune()
    assert name not in place.names(f"base/{INDEX}") or place.files(name)[name]


def test_few_shards_have_no_index(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(number, [-1.0], [1], True) for number in range(MANY)], rows_per_shard=2)
    cache.missing(ASKED)
    assert not place.names(f"base/{INDEX}")
