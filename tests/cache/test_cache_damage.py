"""Damaged and stale files are detected before they are used."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import FolderPlace, Place
from scored_rows import FINGERPRINT, cache_at, cid, row, wanted, write

from mrpo_pipeline.cache import SHARD_SCHEMA, DamagedError, ReferenceCache, StoreError, Unfit
from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.cache.locations import open_storage
from mrpo_pipeline.cache.object_storage import ObjectStorage
from mrpo_pipeline.errors import RunError, UserError

ASKED = wanted([(number, None) for number in range(30)])


def filled(place: Place) -> tuple[ReferenceCache, list[str]]:
    """Thirty completions in two shards; the shards' names."""
    cache = cache_at(place.root)
    rows = [row(number, -np.arange(1.0, 9.0) / 7, np.arange(8), complete=True) for number in range(30)]
    return cache, [f"base/{name}" for name in write(cache, rows, rows_per_shard=15)]


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << (at % 8)
    return bytes(changed)


def test_any_flipped_bit_is_detected(place: Place) -> None:
    _, (name, _) = filled(place)
    sound = place.files()[name]
    places = random.Random(0).sample(range(len(sound)), 60 if isinstance(place, FolderPlace) else 6)
    for at in [0, len(sound) - 1, *places]:
        place.write(name, flipped(sound, at))
        fresh = ReferenceCache.open(place.root, "base")
        with pytest.raises(RunError, match=name):
            fresh.sums(ASKED)
        (bad,) = [report for report in fresh.verify() if report.problem]
        assert f"base/{bad.name}" == name
        place.write(name, sound)
    assert all(report.problem is None for report in ReferenceCache.open(place.root, "base").verify())


@pytest.mark.parametrize("size", [0, 3, 500])
def test_a_truncated_shard_is_named(place: Place, size: int) -> None:
    _, (name, _) = filled(place)
    place.write(name, place.files()[name][:size])
    with pytest.raises(RunError, match=name):
        ReferenceCache.open(place.root, "base").missing(ASKED)


def test_without_the_damaged_shard_only_its_completions_are_missing(place: Place) -> None:
    cache, (name, _) = filled(place)
    cache.sums(ASKED)
    place.delete(name)
    assert set(cache.missing(ASKED)["completion_id"]) == {cid(number) for number in range(15)}
    with pytest.raises(UserError, match="lacks 15 of 30"):
        cache.sums(ASKED)


def test_a_damaged_file_is_moved_aside_and_not_read(place: Place) -> None:
    cache, (name, other) = filled(place)
    cache.mark_unfit([Unfit(cid(99), None, 50, 40)])
    (unfit,) = place.names("base/unfit")
    spoilt = {path: flipped(place.files()[path], 77) for path in (name, unfit)}
    for path, data in spoilt.items():
        place.write(path, data)
    fresh = ReferenceCache.open(place.root, "base")
    damaged = [report.name for report in fresh.verify() if report.problem]
    assert {f"base/{one}" for one in damaged} == set(spoilt)
    moved = fresh.set_aside(damaged)
    assert {f"base/{one}": data for one, data in zip(moved, (spoilt[f"base/{x}"] for x in damaged), strict=True)} == (
        place.files("base/damaged")
    )
    again = ReferenceCache.open(place.root, "base")
    assert [f"base/{report.name}" for report in again.verify()] == [other]
    assert set(again.missing(ASKED)["completion_id"]) == {cid(number) for number in range(15)}
    assert again.unfit(wanted([(99, None)])).is_empty()
    again.prune()
    assert len(place.names("base/damaged")) == 2, "a person may want to look at it"


def test_a_sound_shard_of_another_reference_is_refused_and_one_of_the_same_is_not(place: Place) -> None:
    cache, _ = filled(place)
    built = cache.sums(ASKED)
    for name, fingerprint in (("same", FINGERPRINT), ("other", {**FINGERPRINT, "weights": "sha256:v"})):
        elsewhere = ReferenceCache.open(place.root, name)
        elsewhere.create_or_check(fingerprint)
        (shard,) = write(elsewhere, [row(50, [-1.0], [1], True)])
        place.write(f"base/{shard}", place.files()[f"{name}/{shard}"])
        fresh = ReferenceCache.open(place.root, "base")
        if name == "same":
            assert fresh.sums(wanted([(50, None)]))["logps"].to_list() == [-1.0]
            assert fresh.sums(ASKED).equals(built)
            place.delete(f"base/{shard}")
            continue
        for verb in ("sums", "missing", "rows"):
            with pytest.raises(RunError, match="`weights` is sha256:v in it and sha256:w in the manifest") as caught:
                getattr(fresh, verb)(ASKED)
            assert shard in str(caught.value)
        (bad,) = [report for report in fresh.verify() if report.problem]
        assert bad.name == shard


def test_an_adapter_s_shard_is_not_its_base_s(place: Place) -> None:
    adapted = ReferenceCache.open(place.root, "adapted")
    adapted.create_or_check({**FINGERPRINT, "adapter": "sha256:a"})
    (shard,) = write(adapted, [row(50, [-1.0], [1], True)])
    base, (own, _) = filled(place)
    place.write(f"base/{shard}", place.files()[f"adapted/{shard}"])
    with pytest.raises(RunError, match="`adapter` is sha256:a in it and"):
        base.sums(ASKED)
    place.write(f"adapted/{own.removeprefix('base/')}", place.files()[own])
    with pytest.raises(RunError, match=r"`adapter` is \(not recorded\) in it and sha256:a in the manifest"):
        adapted.sums(ASKED)


def test_derived_sums_of_another_reference_are_not_used_beside_its_shards(place: Place) -> None:
    other = ReferenceCache.open(place.root, "other")
    other.create_or_check({**FINGERPRINT, "weights": "sha256:v"})
    write(other, [row(1, [-9.0], [1], True)])
    other.sums(wanted([(1, None)]))
    base, own = filled(place)
    base.sums(ASKED)
    for name in [*own, *place.names("base/sums/")]:
        place.delete(name)
    for name, data in place.files("other/").items():
        if not name.endswith("manifest.json"):
            place.write(name.replace("other/", "base/"), data)
    with pytest.raises(RunError, match="not computed by this reference"):
        ReferenceCache.open(place.root, "base").sums(wanted([(1, None)]))


def test_verify_names_a_damaged_manifest(place: Place) -> None:
    cache, _ = filled(place)
    place.write("base/manifest.json", place.files()["base/manifest.json"].replace(b"float32", b"float16"))
    with pytest.raises(UserError, match=r"manifest\.json is not a readable manifest"):
        list(cache.verify())


def test_an_unreadable_file_is_not_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, (name, _) = filled(FolderPlace(tmp_path))
    real = LocalStorage.read

    def refuse(self: LocalStorage, file: str) -> pa.Buffer:
        if f"base/{file}" == name:
            raise PermissionError(13, "Permission denied", file)
        return real(self, file)

    monkeypatch.setattr(LocalStorage, "read", refuse)
    with pytest.raises(RunError, match="Permission denied") as caught:
        cache.sums(ASKED)
    assert not isinstance(caught.value, DamagedError)
    (report,) = [one for one in cache.verify() if one.problem]
    assert report.unread and f"base/{report.name}" == name and "Permission denied" in str(report.problem)


def put_table(root: str, **columns: object) -> str:
    """A shard of one row with these columns and a correct checksum."""
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
    return open_storage(root, "base").put("shards", sink.getvalue())


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"token_ids": [[1]]}, "length"),
        ({"byte_ends": [[1]]}, "length"),
        ({"logprobs": [[-1.0, float("nan")]]}, "finite"),
        ({"logprobs": [[float("-inf"), -1.0]]}, "finite"),
        ({"byte_ends": [[2, 1]]}, "decrease"),
        ({"byte_ends": [[-1, 1]]}, "decrease"),
        ({"token_ids": [[]], "logprobs": [[]], "byte_ends": [[]]}, "no tokens"),
        ({"logprobs": [None]}, "nulls"),
        ({"logprobs": [[-1.0, None]]}, "nulls"),
        ({"complete": [None]}, "nulls"),
        ({"completion_id": [None]}, "nulls"),
    ],
)
def test_invalid_rows_of_any_writer_are_refused(place: Place, columns: dict, problem: str) -> None:
    cache = cache_at(place.root)
    name = put_table(place.root, **columns)
    (report,) = cache.verify()
    assert report.name == name
    assert problem in str(report.problem)
    with pytest.raises((RunError, UserError)):
        cache.sums(wanted([(0, None)]))


def test_a_shard_without_a_column_or_not_in_parquet_is_refused(place: Place) -> None:
    cache = cache_at(place.root)
    storage = open_storage(place.root, "base")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"completion_id": [cid(0)]}), sink)
    storage.put("shards", sink.getvalue())
    storage.put("shards", b"not parquet")
    assert all(report.problem for report in cache.verify())
    with pytest.raises(RunError, match="damaged"):
        cache.missing(ASKED)


def test_wider_types_of_another_writer_are_read(place: Place) -> None:
    cache = cache_at(place.root)
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
    open_storage(place.root, "base").put("shards", sink.getvalue())
    assert cache.sums(wanted([(0, None)]))["logps"].to_list() == [-3.0]


def test_derived_sums_are_read_back_and_a_changed_file_is_not(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    cache, shards = filled(place)
    built = cache.sums(ASKED)
    ((name, kept),) = place.files("base/sums").items()
    sound = {shard: place.files()[shard] for shard in shards}
    for shard in shards:
        place.write(shard, b"not looked at while the derived file is sound")
    shuffled = cache.sums(ASKED.sample(fraction=1.0, shuffle=True, seed=1))
    assert shuffled.sort("completion_id").equals(built.sort("completion_id"))
    for shard, data in sound.items():
        place.write(shard, data)

    place.write(name, flipped(kept, 200))
    assert cache.sums(ASKED).equals(built)
    assert "is rebuilt" in caplog.text
    assert place.files("base/sums") == {name: kept}
    assert cache.sums(ASKED).equals(built)


def test_a_derived_file_of_other_shards_is_not_used(place: Place) -> None:
    cache, _ = filled(place)
    cache.sums(ASKED)
    # One more shard, with a longer row for a completion without one: the old sums are incomplete.
    write(cache, [row(99, [-5.0], [1], True)])
    assert cache.sums(wanted([(0, None), (99, None)]))["logps"][1] == -5.0
    assert cache.sums(ASKED).height == 30
    assert len(place.files("base/sums")) == 3


def test_sums_use_a_longer_later_row(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0, -2.0], [2, 4], complete=False)])
    assert cache.sums(wanted([(1, 4)]))["logps"].to_list() == [-3.0]
    write(cache, [row(1, [-1.0, -2.5, -1.0], [2, 4, 4], complete=True)])
    assert cache.sums(wanted([(1, 4)]))["logps"].to_list() == [-3.5]


def test_the_cut_is_part_of_the_derived_file_s_key(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0, -2.0, -4.0], [2, 4, 4], complete=True)])
    assert [cache.sums(wanted([(1, cut)]))["logps"][0] for cut in (None, 4, 2, None)] == [-7.0, -3.0, -1.0, -7.0]


@pytest.mark.parametrize(
    "refusal", [PermissionError(13, "Permission denied"), StoreError("access was denied: expected …")]
)
def test_a_read_only_cache_gives_sums_and_logs_it_once(
    place: Place, refusal: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, _ = filled(place)

    def refuse(*args: object, **kwargs: object) -> str:
        raise refusal

    for kind in (LocalStorage, ObjectStorage):
        monkeypatch.setattr(kind, "put", refuse)
    caplog.set_level("INFO", "mrpo")
    for _ in range(2):
        assert cache.sums(ASKED)["logps"].null_count() == 0
    (told,) = [record.getMessage() for record in caplog.records if "can't be stored" in record.getMessage()]
    assert "denied" in told
    assert "expected" not in told
