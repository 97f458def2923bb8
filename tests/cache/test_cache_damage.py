"""A damaged or stale file is found before one of its numbers is used."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scored_rows import cache_at, cid, row, wanted, write

from mrpo_pipeline.cache import SHARD_SCHEMA, ReferenceCache
from mrpo_pipeline.cache.storage import LocalStorage
from mrpo_pipeline.errors import RunError, UserError

ASKED = wanted([(number, None) for number in range(30)])


def filled(root: Path) -> tuple[ReferenceCache, list[Path]]:
    cache = cache_at(root)
    rows = [row(number, -np.arange(1.0, 9.0) / 7, np.arange(8), complete=True) for number in range(30)]
    return cache, [root / "base" / name for name in write(cache, rows, rows_per_shard=15)]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << (at % 8)
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_is_found_before_a_number_is_used(tmp_path: Path) -> None:
    _, (path, _) = filled(tmp_path)
    sound = path.read_bytes()
    places = random.Random(0).sample(range(len(sound)), 60)
    for at in [0, len(sound) - 1, *places]:
        flip(path, at)
        fresh = ReferenceCache.open(tmp_path, "base")
        with pytest.raises(RunError, match=path.name):
            fresh.sums(ASKED)
        (bad,) = [report for report in fresh.verify() if report.problem]
        assert bad.name == f"shards/{path.name}"
        path.write_bytes(sound)
    assert all(report.problem is None for report in ReferenceCache.open(tmp_path, "base").verify())


@pytest.mark.parametrize("size", [0, 3, 500])
def test_a_shard_cut_short_is_named(tmp_path: Path, size: int) -> None:
    _, (path, _) = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RunError, match=path.name):
        ReferenceCache.open(tmp_path, "base").missing(ASKED)


def test_without_the_damaged_shard_only_its_completions_are_missing(tmp_path: Path) -> None:
    cache, (path, _) = filled(tmp_path)
    cache.sums(ASKED)
    path.unlink()
    assert set(cache.missing(ASKED)["completion_id"]) == {cid(number) for number in range(15)}
    with pytest.raises(UserError, match="lacks 15 of 30"):
        cache.sums(ASKED)


def put_table(root: Path, **columns: object) -> str:
    """A shard of one row with a right checksum, its columns as given."""
    values = {
        "completion_id": [cid(0)],
        "prompt_tokens": [1],
        "token_ids": [[1, 2]],
        "logprobs": [[-1.0, -2.0]],
        "byte_ends": [[1, 1]],
        "complete": [True],
        **columns,
    }
    table = pa.table(values, schema=SHARD_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return LocalStorage(root / "base").put("shards", sink.getvalue())


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"token_ids": [[1]]}, "length"),
        ({"byte_ends": [[1]]}, "length"),
        ({"logprobs": [[-1.0, float("nan")]]}, "finite"),
        ({"logprobs": [[float("-inf"), -1.0]]}, "finite"),
        ({"byte_ends": [[2, 1]]}, "fall"),
        ({"byte_ends": [[-1, 1]]}, "fall"),
        ({"token_ids": [[]], "logprobs": [[]], "byte_ends": [[]]}, "no tokens"),
        ({"logprobs": [None]}, "nulls"),
        ({"logprobs": [[-1.0, None]]}, "nulls"),
        ({"complete": [None]}, "nulls"),
        ({"completion_id": [None]}, "nulls"),
    ],
)
def test_rows_that_cannot_be_are_refused_whoever_wrote_them(tmp_path: Path, columns: dict, problem: str) -> None:
    cache = cache_at(tmp_path)
    name = put_table(tmp_path, **columns)
    (report,) = cache.verify()
    assert report.name == name
    assert problem in str(report.problem)
    with pytest.raises((RunError, UserError)):
        cache.sums(wanted([(0, None)]))


def test_a_shard_without_a_column_or_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    storage = LocalStorage(tmp_path / "base")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"completion_id": [cid(0)]}), sink)
    storage.put("shards", sink.getvalue())
    storage.put("shards", b"not parquet")
    assert all(report.problem for report in cache.verify())
    with pytest.raises(RunError, match="damaged"):
        cache.missing(ASKED)


def test_wider_types_of_another_writer_are_read(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    wide = pa.table(
        {
            "complete": [True],
            "completion_id": pa.array([cid(0)], pa.large_string()),
            "prompt_tokens": pa.array([1], pa.int64()),
            "token_ids": pa.array([[1, 2]], pa.large_list(pa.int64())),
            "logprobs": pa.array([[-1.0, -2.0]], pa.large_list(pa.float32())),
            "byte_ends": pa.array([[1, 1]], pa.list_(pa.int64())),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(wide, sink)
    LocalStorage(tmp_path / "base").put("shards", sink.getvalue())
    assert cache.sums(wanted([(0, None)]))["logps"].to_list() == [-3.0]


def test_derived_sums_are_read_back_and_a_changed_file_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, _ = filled(tmp_path)
    built = cache.sums(ASKED)
    (path,) = (tmp_path / "base" / "sums").iterdir()
    changed = path.stat().st_mtime_ns
    assert (
        cache.sums(ASKED.sample(fraction=1.0, shuffle=True, seed=1))
        .sort("completion_id")
        .equals(built.sort("completion_id"))
    )
    assert path.stat().st_mtime_ns == changed

    flip(path, 200)
    assert cache.sums(ASKED).equals(built)
    assert "built again" in caplog.text
    assert cache.sums(ASKED).equals(built)


def test_a_derived_file_with_other_numbers_under_a_right_checksum_of_other_shards_is_not_used(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path)
    cache.sums(ASKED)
    # One more shard, with a longer row for a completion that so far had none: the old sums no longer tell the whole.
    write(cache, [row(99, [-5.0], [1], True)])
    assert cache.sums(wanted([(0, None), (99, None)]))["logps"][1] == -5.0
    assert cache.sums(ASKED).height == 30
    assert len(list((tmp_path / "base" / "sums").iterdir())) == 3


def test_sums_follow_a_longer_row_that_came_later(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    write(cache, [row(1, [-1.0, -2.0], [2, 4], complete=False)])
    assert cache.sums(wanted([(1, 4)]))["logps"].to_list() == [-3.0]
    write(cache, [row(1, [-1.0, -2.5, -1.0], [2, 4, 4], complete=True)])
    assert cache.sums(wanted([(1, 4)]))["logps"].to_list() == [-3.5]


def test_a_cut_asked_for_is_part_of_the_derived_file_s_key(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    write(cache, [row(1, [-1.0, -2.0, -4.0], [2, 4, 4], complete=True)])
    assert [cache.sums(wanted([(1, cut)]))["logps"][0] for cut in (None, 4, 2, None)] == [-7.0, -3.0, -1.0, -7.0]


def test_a_read_only_cache_still_gives_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _ = filled(tmp_path)

    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(LocalStorage, "put", refuse)
    assert cache.sums(ASKED)["logps"].null_count() == 0
