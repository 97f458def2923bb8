"""The documented file layout, read with pyarrow and json only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import Place
from scored_rows import FINGERPRINT, cache_at, row, wanted, write

from mrpo_pipeline.cache import ReferenceCache, list_references
from mrpo_pipeline.errors import RunError, UserError

CONTRACT = pa.schema(
    [
        pa.field("completion_id", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("logprobs", pa.list_(pa.float32())),
        pa.field("byte_ends", pa.list_(pa.int32())),
        pa.field("complete", pa.bool_()),
    ]
)


def test_shards_have_the_contract_s_columns_and_encodings(place: Place) -> None:
    cache = cache_at(f"{place.root}/new/cache", "hermes")
    write(cache, [row(number, [-1.0, -0.5], [1, 1], complete=True) for number in range(5)])
    ((name, data),) = place.files("new/cache/hermes/shards/").items()
    assert pq.read_schema(pa.BufferReader(data)).equals(CONTRACT)
    assert name == f"new/cache/hermes/shards/{hashlib.sha256(data).hexdigest()}.parquet"
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    found = {group.column(at).path_in_schema: group.column(at) for at in range(group.num_columns)}
    assert {column.compression for column in found.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in found["logprobs.list.element"].encodings
    assert "DELTA_BINARY_PACKED" in found["byte_ends.list.element"].encodings
    assert not any("DICTIONARY" in encoding for column in found.values() for encoding in column.encodings)


def test_row_groups_hold_about_ten_thousand_rows(tmp_path: Path) -> None:
    (name,) = write(cache_at(tmp_path), (row(number, [-1.0], [1], True) for number in range(10_001)), 20_000)
    file = pq.ParquetFile(tmp_path / "base" / name)
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [10_000, 1]


def test_manifest_holds_the_fingerprint_and_what_was_recorded_beside_it(place: Place) -> None:
    cache_at(place.root)
    ((name, data),) = place.files().items()
    assert name == "base/manifest.json"
    document = json.loads(data)
    canonical = json.dumps(FINGERPRINT, sort_keys=True, separators=(",", ":"))
    assert document["format"] == 1
    assert document["reference"] == "base"
    assert document["fingerprint"] == FINGERPRINT
    assert document["fingerprint_hash"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert document["recorded"]["engine"] == "made up"
    assert document["recorded"]["created"]


def test_references_are_listed_by_name(place: Place) -> None:
    assert list_references(f"{place.root}/none") == []
    for name in ("b", "a", "not-a-reference"):
        write(cache_at(place.root, name), [row(1, [-1.0], [1], True)])
    place.delete("not-a-reference/manifest.json")
    assert list_references(place.root) == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["..", ".", "../x", "a/b", "a\\b", "/etc", "", "-a", ".a", "a" * 65, "é", "a\n", "a b", "а", "a\0"]
)
def test_names_that_could_leave_the_cache_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="reference name"):
        ReferenceCache.open(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0" * 64, "a..b"])
def test_plain_names_are_accepted(tmp_path: Path, name: str) -> None:
    assert ReferenceCache.open(tmp_path, name).location == str(tmp_path / name)


def test_opening_and_querying_creates_no_files(place: Place) -> None:
    cache = ReferenceCache.open(place.root, "base")
    cache.check(FINGERPRINT)
    assert cache.missing(wanted([(1, None)])).height == 1
    assert place.files() == {}


def test_a_file_in_place_of_the_cache_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        ReferenceCache.open(tmp_path / "file", "base")


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert ReferenceCache.open(f"file://{tmp_path}/a%20b", "base").location == str(tmp_path / "a b" / "base")


def test_writing_without_a_manifest_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="create_or_check"):
        ReferenceCache.open(tmp_path, "base").writer()


def test_shards_without_a_manifest_are_not_used(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0], [1], True)])
    place.delete("base/manifest.json")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        cache.check(FINGERPRINT)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        cache.create_or_check(FINGERPRINT)


def test_a_cache_replaced_under_a_writer_is_not_mixed_with_the_old_one(place: Place) -> None:
    cache = cache_at(place.root)
    with pytest.raises(RunError, match="removed or replaced"), cache.writer() as writer:  # noqa: PT012
        writer.add(row(1, [-1.0], [1], True))
        cache.remove()
        ReferenceCache.open(place.root, "base").create_or_check({**FINGERPRINT, "template": "t2"})
    assert list(place.files()) == ["base/manifest.json"]
