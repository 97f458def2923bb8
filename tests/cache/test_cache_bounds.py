"""Cache files that expand too much are reported as damaged before memory is allocated."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpo_pipeline.cache.coverage import shard_coverage
from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.cache.schema import SHARD_SCHEMA, UNFIT_SCHEMA
from mrpo_pipeline.cache.shards import DamagedError, read_checked, read_rows
from mrpo_pipeline.cache.unscorable import read_unfit
from mrpo_pipeline.files import bounds

MOST = 200 << 20
"""Bytes that Arrow may allocate; each bomb expands to several times as many."""


def lists(values: Any, rows: int) -> pa.ListArray:
    offsets = np.linspace(0, len(values), rows + 1).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def shard(ids: Any, rows: int, tokens: int) -> pa.Table:
    whole, real = np.zeros(rows * tokens, np.int32), np.zeros(rows * tokens, np.float32)
    columns = [ids, pa.array(np.ones(rows, np.int32)), *(lists(one, rows) for one in (whole, real, whole))]
    return pa.table([*columns, pa.array([True] * rows)], names=SHARD_SCHEMA.names)


def repeated(text: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


def put(root: Path, folder: str, table: pa.Table, **options: Any) -> tuple[LocalStorage, str]:
    path = root / folder / "made"
    path.parent.mkdir()
    pq.write_table(table, path, compression="zstd", write_statistics=False, store_schema=False, **options)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(path.with_name(f"{digest}.parquet"))
    return LocalStorage(root), f"{folder}/{digest}.parquet"


def bomb(kind: str) -> tuple[pa.Table, dict[str, Any]]:
    if kind == "a list of many tokens":
        return shard(pa.array(["0" * 32]), 1, 8_000_000), {}
    if kind == "a giant id":
        return shard(pa.array(["0" * (64 << 20)]), 1, 1), {"use_dictionary": False}
    if kind == "an id that repeats":
        return shard(repeated("0" * (1 << 20), 1500), 1500, 1), {"use_dictionary": ["completion_id"]}
    raise AssertionError(kind)


KINDS = {
    "a list of many tokens": "a column of this Parquet file has",
    "a giant id": "a page of this Parquet file has",
    "an id that repeats": "a completion id is not 32",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_expands_too_much_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(bounds, "FREE_EXPANSION", 16 << 20)
    table, options = bomb(kind)
    storage, name = put(tmp_path, "shards", table, **options)
    del table
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DamagedError, match=KINDS[kind]):
        shard_coverage(storage, name, None)
    with pytest.raises(DamagedError, match=KINDS[kind]):
        list(read_rows(storage, name, read_checked(storage, name)))
    assert pa.default_memory_pool().max_memory() - before < MOST
    assert storage.size(name) < 200_000


def test_a_record_that_expands_too_much_is_damaged(tmp_path: Path) -> None:
    rows = 1500
    numbers = [pa.array(np.ones(rows), kind) for kind in UNFIT_SCHEMA.types[1:]]
    table = pa.table([repeated("0" * (1 << 20), rows), *numbers], names=UNFIT_SCHEMA.names)
    storage, _ = put(tmp_path, "unfit", table, use_dictionary=["completion_id"])
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DamagedError, match="a completion id is not 32"):
        read_unfit(storage)
    assert pa.default_memory_pool().max_memory() - before < MOST


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_shard_of_another_writer_is_read(tmp_path: Path, dictionary: bool) -> None:
    """With more rows than one batch, in row groups of another size."""
    ids = [f"{number:032x}" for number in range(25_000)]
    storage, name = put(
        tmp_path, "shards", shard(pa.array(ids), len(ids), 3), use_dictionary=dictionary, row_group_size=12_000
    )
    parts = list(read_rows(storage, name, read_checked(storage, name)))
    assert [part.first for part in parts] == [0, 10_000, 12_000, 22_000, 24_000]
    assert [one for part in parts for one in part.completion_ids.to_pylist()] == ids
    found = shard_coverage(storage, name, None)
    assert found["completion_id"].to_list() == ids
    assert found["row"].to_list() == list(range(len(ids)))
