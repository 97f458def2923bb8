"""A cache in an object store: its requests, and that a reader never sees partial data. The tests of the cache itself run
against both a folder and a store."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from loopback_s3 import LoopbackS3
from scored_rows import FINGERPRINT, cache_at, cid, row, wanted, write

from mrpo_pipeline.cache import CompletionRow, ReferenceCache, list_references
from mrpo_pipeline.cache.object_storage import ObjectStorage
from mrpo_pipeline.cache.store_connections import connect
from mrpo_pipeline.errors import RunError, UserError

ROWS = [row(number, [-number - 1.0, -0.5], [1, 1], True) for number in range(30)]
ASKED = wanted([(number, None) for number in range(30)])


class Watched:
    """The requests sent in the block."""

    def __init__(self, s3: LoopbackS3) -> None:
        self._s3 = s3
        self.requests: list[dict[str, Any]] = []

    def __enter__(self) -> Watched:
        self._before = len(self._s3.requests())
        return self

    def __exit__(self, *_: object) -> None:
        self.requests = self._s3.requests()[self._before :]

    def of(self, method: str, part: str = "") -> list[dict[str, Any]]:
        return [one for one in self.requests if one["method"] == method and part in one["path"] + "?" + one["query"]]


def long_rows(count: int) -> list[CompletionRow]:
    """Rows of about 100 tokens whose log-probs do not compress, like real ones."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        length = int(rng.integers(20, 180))
        ends = np.cumsum(rng.integers(1, 9, length))
        rows.append(
            CompletionRow(
                cid(number),
                50,
                rng.integers(0, 150_000, length).astype(np.int32),
                -rng.exponential(2.0, length).astype(np.float32),
                ends.astype(np.int32),
                True,
            )
        )
    return rows


# Requests to the store.


def test_a_shard_is_one_put_and_a_rerun_writes_nothing(s3: LoopbackS3, bucket: str) -> None:
    cache = cache_at(f"{bucket}/cache")
    with Watched(s3) as watched:
        (name,) = write(cache, ROWS)
    (put,) = watched.of("PUT")
    assert put["path"].endswith(f"/cache/base/{name}") and put["query"] in ("", "x-id=PutObject")
    assert not watched.of("POST") and not watched.of("DELETE")
    with Watched(s3) as watched:
        fresh = ReferenceCache.open(f"{bucket}/cache", "base")
        fresh.create_or_check(FINGERPRINT)
        assert fresh.missing(ASKED).is_empty()
    assert {one["method"] for one in watched.requests} == {"GET"}


def test_a_large_shard_is_one_put(s3: LoopbackS3, bucket: str) -> None:
    # s3fs sends 100 MiB and more in parts by default; this much is above that.
    data = random.Random(0).randbytes(1 << 20) * 101
    with Watched(s3) as watched:
        name = ObjectStorage(f"{bucket}/base").put("shards", data)
    assert [one["path"].rpartition("/")[2] for one in watched.requests] == [name.rpartition("/")[2]]
    assert s3.keys(bucket) == {f"base/{name}": len(data)}


def test_coverage_takes_one_listing_and_a_fraction_of_the_bytes(s3: LoopbackS3, bucket: str) -> None:
    write(cache_at(bucket), long_rows(4_000), rows_per_shard=2_000)
    sizes = [size for name, size in s3.keys(bucket).items() if "shards" in name]
    assert len(sizes) == 2 and min(sizes) > 500_000
    with Watched(s3) as watched:
        fresh = ReferenceCache.open(bucket, "base")
        assert fresh.missing(wanted([(number, None) for number in range(4_001)])).height == 1
    assert len(watched.of("GET", "prefix=base%2Fshards%2F")) == 1 and not watched.of("HEAD")
    fetched = watched.of("GET", "/shards/")
    assert all(one["range"] for one in fetched)
    assert sum(one["sent"] for one in fetched) < 0.35 * sum(sizes)
    with Watched(s3) as watched:
        fresh.missing(wanted([(number, None) for number in range(4_001)]))
    assert not watched.of("GET", "/shards/")


def test_a_small_shard_s_coverage_is_one_request_and_sizes_come_from_the_listing(s3: LoopbackS3, bucket: str) -> None:
    write(cache_at(bucket), ROWS, rows_per_shard=3)
    with Watched(s3) as watched:
        ReferenceCache.open(bucket, "base").missing(ASKED)
    assert len(watched.of("GET", "/shards/")) == 10
    with Watched(s3) as watched:
        stats = ReferenceCache.open(bucket, "base").stats()
    assert stats.size == sum(size for name, size in s3.keys(bucket).items() if "shards" in name)
    assert not watched.of("HEAD")


def test_stored_sums_are_one_request(s3: LoopbackS3, bucket: str) -> None:
    write(cache_at(bucket), ROWS)
    built = ReferenceCache.open(bucket, "base").sums(ASKED)
    with Watched(s3) as watched:
        assert ReferenceCache.open(bucket, "base").sums(ASKED).equals(built)
    assert len(watched.of("GET", "/sums/")) == 1 and not watched.of("GET", "/shards/") and not watched.of("PUT")


def test_changes_of_another_writer_are_seen_immediately(s3: LoopbackS3, bucket: str) -> None:
    cache = cache_at(bucket)
    (first,) = write(cache, ROWS[:10])
    assert cache.missing(ASKED).height == 20
    write(ReferenceCache.open(bucket, "base"), ROWS[10:])
    assert cache.missing(ASKED).is_empty()
    assert cache.sums(ASKED)["logps"].to_list() == [-number - 1.5 for number in range(30)]
    s3.delete(bucket, f"base/{first}")
    assert cache.missing(ASKED).height == 10
    assert list_references(bucket) == ["base"]
    s3.delete(bucket, "base/manifest.json")
    assert list_references(bucket) == []


def test_a_shard_removed_after_the_listing_is_skipped(
    s3: LoopbackS3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cache_at(bucket), ROWS, rows_per_shard=15)
    listing = ObjectStorage.list

    def then_another_process_prunes(self: ObjectStorage, folder: str, suffix: str = ".parquet") -> list[str]:
        names = listing(self, folder, suffix)
        if folder == "shards":
            s3.delete(bucket, f"base/{names[0]}")
        return names

    monkeypatch.setattr(ObjectStorage, "list", then_another_process_prunes)
    assert ReferenceCache.open(bucket, "base").missing(ASKED).height == 15


def test_a_bucket_root_and_names_with_a_common_prefix_are_distinct(s3: LoopbackS3, bucket: str) -> None:
    for name in ("base", "base2", "bas"):
        write(cache_at(bucket, name), ROWS[: len(name)])
    assert list_references(bucket) == ["bas", "base", "base2"]
    assert ReferenceCache.open(f"{bucket}/", "base").stats().rows == 4
    with Watched(s3) as watched:
        ReferenceCache.open(bucket, "base").remove()
    assert list_references(bucket) == ["bas", "base2"]
    # The fingerprint stays until the last row is gone.
    assert [one["path"].endswith("/base/manifest.json") for one in watched.of("DELETE")] == [False, True]


def test_an_unfinished_multipart_upload_is_not_touched(s3: LoopbackS3, bucket: str) -> None:
    name = bucket.removeprefix("s3://")
    cache = cache_at(bucket)
    s3.client.create_multipart_upload(Bucket=name, Key="base/shards/theirs.parquet")
    write(cache, ROWS)
    assert cache.prune().leftovers == 0
    assert cache.missing(ASKED).is_empty()
    assert len(s3.client.list_multipart_uploads(Bucket=name)["Uploads"]) == 1


def test_an_opened_cache_is_pickled_as_its_url(bucket: str) -> None:
    write(cache_at(bucket), ROWS)
    storage = ObjectStorage(f"{bucket}/base")
    storage.list("shards")
    data = pickle.dumps(storage)
    assert pickle.loads(data).list("shards") == storage.list("shards")
    assert b"loopback" not in data and b"not-a-secret" not in data


def test_other_fsspec_stores_work() -> None:
    cache = cache_at("memory://somewhere/cache")
    write(cache, ROWS, rows_per_shard=7)
    fresh = ReferenceCache.open("memory://somewhere/cache/", "base")
    assert list_references("memory://somewhere/cache") == ["base"]
    assert fresh.missing(ASKED).is_empty()
    assert fresh.sums(ASKED)["logps"].to_list() == [-number - 1.5 for number in range(30)]
    with pytest.raises(UserError, match="`template`"):
        fresh.create_or_check({**FINGERPRINT, "template": "t2"})
    fresh.remove()
    assert list_references("memory://somewhere/cache") == []


def test_the_environment_overrides_retries_and_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.config import conf

    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    monkeypatch.delenv("AWS_RETRY_MODE", raising=False)
    limited = connect("s3://bucket")[0].config_kwargs
    assert limited["retries"]["total_max_attempts"] == 4 and limited["read_timeout"] == 15
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 90}})
    assert connect("s3://bucket")[0].config_kwargs == {**limited, "read_timeout": 90}
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    assert "retries" not in connect("s3://bucket")[0].config_kwargs


# The manifest is created once.


@pytest.mark.parametrize("kind", ["plain", "busy", "terse"])
def test_one_of_eight_threads_creates_the_manifest(s3: LoopbackS3, kind: str) -> None:
    url = s3.bucket(f"{kind}-eight-threads")
    for turn in range(5):

        def create(number: int, turn: int = turn) -> bool:
            return ObjectStorage(f"{url}/{turn}").create("manifest.json", b"%d" % number)

        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(create, range(8)))
        assert made.count(True) == 1
        assert s3.get(url, f"{turn}/manifest.json") == b"%d" % made.index(True)


def test_a_store_without_conditional_puts_is_read_first(s3: LoopbackS3) -> None:
    url = s3.bucket("unconditional-store")
    storage = ObjectStorage(f"{url}/base")
    assert storage.create("manifest.json", b"first") is True
    assert storage.create("manifest.json", b"second") is False
    assert s3.get(url, "base/manifest.json") == b"first"


def test_a_store_that_ignores_the_condition_does_not_mix_two_references(s3: LoopbackS3) -> None:
    url = s3.bucket("deaf-store")
    cache = cache_at(url)
    with pytest.raises(UserError, match="`template`"):
        ReferenceCache.open(url, "base").create_or_check({**FINGERPRINT, "template": "t2"})
    # Both found no manifest at the same time; the other one's was written last.
    with pytest.raises(RunError, match="removed or replaced"), cache.writer() as writer:  # noqa: PT012
        writer.add(ROWS[0])
        assert ObjectStorage(f"{url}/other").create("manifest.json", b"x")
        s3.put(url, "base/manifest.json", _manifest_of_another(url))
    assert [name for name in s3.keys(url) if name.endswith(".parquet")] == []


def _manifest_of_another(url: str) -> bytes:
    cache = ReferenceCache.open(url, "another")
    cache.create_or_check({**FINGERPRINT, "template": "t2"})
    return ObjectStorage(f"{url}/another").read("manifest.json").to_pybytes()


# Broken connections.


def test_a_put_with_a_lost_response_is_repeated(s3: LoopbackS3, bucket: str) -> None:
    storage = ObjectStorage(f"{bucket}/base")
    storage.list("shards")  # a connection is open from here on
    s3.line.lose_answers = 1
    with Watched(s3) as watched:
        name = storage.put("shards", b"the same bytes")
    assert [one["status"] for one in watched.of("PUT")] == [200, 200]
    assert s3.keys(bucket) == {f"base/{name}": 14}


def test_a_manifest_with_a_lost_response_is_recognized(
    s3: LoopbackS3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ReferenceCache.open(bucket, "base")
    create = ObjectStorage.create

    def losing_the_answer(self: ObjectStorage, name: str, data: bytes) -> bool:
        s3.line.lose_answers = 1
        return create(self, name, data)

    monkeypatch.setattr(ObjectStorage, "create", losing_the_answer)
    with Watched(s3) as watched:
        assert cache.create_or_check(FINGERPRINT, {"engine": "ours"}).recorded["engine"] == "ours"
    assert [one["status"] for one in watched.of("PUT")] == [200, 412]


def test_an_interrupted_put_leaves_nothing_and_the_next_try_resumes(
    s3: LoopbackS3, bucket: str, monkeypatch: pytest.MonkeyPatch, new_connections: None
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    cache = cache_at(bucket)
    write(cache, ROWS[:1])
    before = s3.keys(bucket)
    rows = long_rows(2_000)
    with cache.writer(rows_per_shard=10_000) as writer:
        for one in rows:
            writer.add(one)
        s3.line.cut_after = 200_000
        with pytest.raises(RunError, match=r"2,000 completions could not be written.*cannot be reached") as caught:
            writer.flush()
        assert "Earlier shards are complete" in str(caught.value)
        assert s3.keys(bucket) == before
        s3.line.restore()
    fresh = ReferenceCache.open(bucket, "base")
    assert fresh.missing(wanted([(number, None) for number in range(2_000)])).is_empty()
    assert all(report.problem is None for report in fresh.verify())


def test_an_unreachable_store_is_not_damage(
    s3: LoopbackS3, bucket: str, monkeypatch: pytest.MonkeyPatch, new_connections: None
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    write(cache_at(bucket), ROWS)
    cache = ReferenceCache.open(bucket, "base")
    names = ObjectStorage(f"{bucket}/base").list("shards")
    s3.line.cut()
    for ask in (
        lambda: cache.sums(ASKED),
        lambda: cache.missing(ASKED),
        lambda: cache._coverage.rows(names),
        lambda: list(cache.verify()),
        cache.stats,
        cache.remove,
    ):
        with pytest.raises(RunError, match="cannot be reached") as caught:
            ask()
        assert "damaged" not in str(caught.value)
    s3.line.restore()
    assert cache.sums(ASKED)["logps"].null_count() == 0
