"""Copied caches: the same numbers at every copy, and only files with correct checksums."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from places import FolderPlace, Place
from scored_rows import FINGERPRINT, cache_at, row, wanted, write

from mrpo_pipeline.cache import DamagedError, Manifest, ReferenceCache, Unfit
from mrpo_pipeline.cache.transfer import copy_cache, find_caches
from mrpo_pipeline.errors import UserError

ROWS = [row(number, np.linspace(-number - 1, -0.5, 4), [1, 2, 4, 4], True) for number in range(40)]
ASKED = wanted([(number, None) for number in range(40)])


def manifest(cache: ReferenceCache) -> Manifest:
    found = cache.manifest()
    assert found is not None
    return found


@pytest.fixture
def source(tmp_path: Path) -> ReferenceCache:
    cache = cache_at(tmp_path / "source")
    write(cache, ROWS, rows_per_shard=10)
    cache.mark_unfit([Unfit("f" * 32, None, 90, 64)])
    cache.record_check({"time": "2026-01-01", "passed": True})
    return cache


def test_a_copy_serves_the_same_numbers_and_is_copied_once(source: ReferenceCache, place: Place) -> None:
    copy = ReferenceCache.open(place.root, "base")
    done = copy_cache(source, copy)
    assert (done.files, done.present) == (6, 0) and done.size > 0
    assert copy.sums(ASKED).equals(source.sums(ASKED))
    assert copy.rows(ASKED).sort("completion_id").equals(source.rows(ASKED).sort("completion_id"))
    assert copy.unfit(wanted([(0, None)])).is_empty() and copy.checks() == source.checks()
    assert not [report.problem for report in copy.verify() if report.problem]
    assert manifest(copy) == manifest(source)
    again = copy_cache(source, copy)
    assert (again.files, again.present, again.size) == (0, 6, 0)


def test_the_way_back_is_the_same(source: ReferenceCache, place: Place, tmp_path: Path) -> None:
    there, back = ReferenceCache.open(place.root, "base"), ReferenceCache.open(tmp_path / "back", "base")
    copy_cache(source, there)
    copy_cache(there, back)
    assert FolderPlace(tmp_path / "back").files("base/shards") == FolderPlace(tmp_path / "source").files("base/shards")


def test_only_shards_that_serve_what_is_needed_are_copied(source: ReferenceCache, place: Place, tmp_path: Path) -> None:
    there, here = ReferenceCache.open(place.root, "base"), ReferenceCache.open(tmp_path / "here", "base")
    copy_cache(source, there)
    needed = wanted([(3, None), (4, 2), (25, None)])
    done = copy_cache(there, here, wanted=needed)
    assert len(FolderPlace(tmp_path / "here").names("base/shards")) == 2 and done.files == 4
    assert here.sums(needed).equals(source.sums(needed))
    # Rows that are already served are not needed.
    assert copy_cache(there, here, wanted=needed).files == 0


def test_two_caches_of_one_fingerprint_become_one(source: ReferenceCache, tmp_path: Path) -> None:
    other = cache_at(tmp_path / "other")
    more = [row(number, [-1.0, -2.0], [1, 1], True) for number in range(35, 60)]
    write(other, more)
    copy_cache(source, other)
    served = other.sums(wanted([(number, None) for number in range(60)]))
    assert served.height == 60 and other.stats().rows == 40 + 25


@pytest.mark.parametrize("change", [{"weights": "sha256:x"}, {"adapter": "a"}])
def test_numbers_of_another_reference_are_not_mixed(
    source: ReferenceCache, tmp_path: Path, change: dict[str, str]
) -> None:
    other = ReferenceCache.open(tmp_path / "other", "base")
    other.create_or_check({**FINGERPRINT, **change})
    with pytest.raises(UserError, match=f"holds numbers of another reference .* `{next(iter(change))}`"):
        copy_cache(source, other)
    with pytest.raises(UserError, match="holds numbers of another reference"):
        copy_cache(other, source)
    assert not FolderPlace(tmp_path / "other").names("base/shards")


def test_one_changed_byte_anywhere_is_refused(source: ReferenceCache, tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "source")
    for name in [name for name in place.names("base/") if "/sums/" not in name]:
        data = place.files(name)[name]
        for at in (0, len(data) // 2, len(data) - 2):
            place.write(name, data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            with pytest.raises(
                UserError, match=r"is damaged|is not a readable manifest|was changed since|no cached reference"
            ):
                copy_cache(source, ReferenceCache.open(tmp_path / f"copy-{name.replace('/', '-')}-{at}", "base"))
        place.write(name, data)


def test_every_byte_of_a_manifest_counts(source: ReferenceCache) -> None:
    data, before = manifest(source).to_bytes(), manifest(source)
    for at in range(len(data)):
        for bit in (1, 4, 64):
            with suppress(UserError):
                found = Manifest.from_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :], "it")
                assert found.edited or found == before


def test_ids_are_withheld_and_sums_and_byte_ends_stay(source: ReferenceCache, place: Place, tmp_path: Path) -> None:
    there = ReferenceCache.open(place.root, "base")
    done = copy_cache(source, there, without_ids=True)
    assert done.files == 5  # no check: its examples hold tokens
    assert there.sums(ASKED).equals(source.sums(ASKED))
    ours, theirs = (one.rows(ASKED).sort("completion_id") for one in (there, source))
    assert ours.drop("token_ids").equals(theirs.drop("token_ids"))
    assert set(ours["token_ids"].explode()) == {0} and ours["token_ids"].list.len().equals(
        theirs["token_ids"].list.len()
    )
    assert manifest(there).ids_withheld
    assert copy_cache(source, there, without_ids=True).files == 0
    with pytest.raises(UserError, match="without them"):
        copy_cache(source, there)
    back = ReferenceCache.open(tmp_path / "back", "base")
    copy_cache(there, back)
    assert manifest(back).ids_withheld


def test_an_older_version_reads_a_manifest_with_a_card(source: ReferenceCache, tmp_path: Path) -> None:
    copy_cache(source, ReferenceCache.open(tmp_path / "copy", "base"), without_ids=True)
    document = json.loads((tmp_path / "copy" / "base" / "manifest.json").read_text())
    assert document["format"] == 1 and document["card"] == {"token_ids": "withheld"}


def test_a_cache_and_one_reference_of_it_are_found(source: ReferenceCache, tmp_path: Path) -> None:
    cache_at(tmp_path / "source", "other")
    root = str(tmp_path / "source")
    assert [one.name for one in find_caches(root)] == ["base", "other"]
    assert [one.name for one in find_caches(f"{root}/other/")] == ["other"]
    with pytest.raises(UserError, match="holds no reference 'third'"):
        find_caches(root, ["third"])
    with pytest.raises(UserError, match="holds no cached reference"):
        find_caches(str(tmp_path / "nothing"))


def test_a_reference_that_is_not_the_one_named_is_no_match(source: ReferenceCache, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no reference 'old'"):
        find_caches(str(tmp_path / "source" / "base"), ["old"])
    for place in ("hf://datasets/org/name", "s3://bucket", "nothing", "a:b/c"):
        with pytest.raises(UserError) as caught:
            find_caches(place if "://" not in place else str(tmp_path / "none" / place.partition("://")[2]))
        assert "holds no cached reference" in str(caught.value)


def test_options_folders_and_addresses_stay_at_home(tmp_path: Path, place: Place) -> None:
    cache = ReferenceCache.open(tmp_path / "own", "base")
    versions = {"mrpo": "0.1.0", "loaded from": "/home/alice/models/x"}
    cache.create_or_check(FINGERPRINT, {"engine": "vllm", "options": {"hf_token": "hf_secret"}, "versions": versions})
    write(cache, ROWS[:3])
    check = {
        "time": "2026-01-01",
        "passed": True,
        "cache": "/home/alice/cache",
        "recomputed_by": {"device": "http://10.0.0.5"},
    }
    cache.record_check(check)
    there = ReferenceCache.open(place.root, "base")
    copy_cache(cache, there)
    assert manifest(there).recorded.keys() == {"engine", "versions", "created"}
    assert there.checks() == [{"time": "2026-01-01", "passed": True}]
    assert not [
        name for name, data in place.files().items() if b"alice" in data or b"hf_secret" in data or b"10.0.0" in data
    ]
    assert copy_cache(cache, there).files == 0


def test_ids_stay_withheld_whatever_was_added_since(source: ReferenceCache, tmp_path: Path) -> None:
    pulled = ReferenceCache.open(tmp_path / "pulled", "base")
    copy_cache(source, pulled, without_ids=True)
    write(pulled, [row(99, [-1.0, -2.0, -3.0], [1, 2, 2], True)])
    pulled.record_check({"time": "2026-02-02"})
    again = ReferenceCache.open(tmp_path / "again", "base")
    copy_cache(pulled, again)
    assert set(again.rows(wanted([(99, None), (1, None)]))["token_ids"].explode()) == {0} and not again.checks()
    assert again.sums(wanted([(99, None)]))["logps"].to_list() == [-6.0]


def test_records_that_are_none_are_refused(source: ReferenceCache, tmp_path: Path) -> None:
    source.storage.put("unfit", b"no parquet")
    with pytest.raises(DamagedError, match="is damaged"):
        copy_cache(source, ReferenceCache.open(tmp_path / "copy", "base"))
