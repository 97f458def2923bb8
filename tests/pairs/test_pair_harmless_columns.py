"""Unusable values in extra columns do not reject a row; the same values in needed columns do."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import read_pairs

PAIR = '"prompt": "q", "chosen": "a", "rejected": "b"'

HARMLESS = {
    "NaN": ("NaN", None),
    "infinity": ("-Infinity", None),
    "NaN inside": ('{"mean": [NaN, 1.5]}', {"mean": [None, 1.5]}),
    "a number beyond a double": ("1e999", None),
    "a whole number of 30 digits": ("9" * 30, int("9" * 30)),
    "a whole number of 5,000 digits": ("9" * 5000, None),
    "an object of Mongo's": ('{"$oid": "65f"}', {"$oid": "65f"}),
    "a date": ('"2024-02-30T25:00"', "2024-02-30T25:00"),
    "NUL": ('"a\\u0000b"', "a\0b"),
    "an empty list": ("[]", []),
    "lists of many kinds": ('[1, "a", null, {"b": [true]}]', [1, "a", None, {"b": [True]}]),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_extra_json_columns_never_reject_a_row(tmp_path: Path, kind: str) -> None:
    text, kept = HARMLESS[kind]
    (tmp_path / "pairs.jsonl").write_text(f'{{{PAIR}, "other": {text}, "last": 7}}\n')
    frame = read_pairs(str(tmp_path / "pairs.jsonl")).frame
    assert json.loads(frame["extra"][0]) == {"other": kept, "last": 7}
    assert frame["chosen"].to_list() == ["a"]


LEFT_OUT = {
    "duplicate key": ('"other": {"x": 1, "x": 2}', '"chosen": [{"role": "user", "role": "assistant", "content": "a"}]'),
    "duplicate key of the row": ('"other": 1, "other": 2', '"chosen": "a", "chosen": "c"'),
    "lone surrogate": ('"other": ["\\ud800"]', '"chosen": "\\udc00"'),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_inexact_values_are_dropped_with_a_notice_and_are_errors_in_needed_columns(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pairs.jsonl"
    harmless, needed = LEFT_OUT[kind]
    reason = kind.removesuffix(" of the row")
    path.write_text(f'{{{PAIR}, {harmless}, "last": 7}}\n')
    table = read_pairs(str(path))
    assert table.frame["extra"].to_list() == ['{"last":7}']
    assert table.notices == (f"1 row: an extra column is dropped, because its value cannot be kept: {reason}",)
    path.write_text(f'{{"prompt": "q", "rejected": "b", {needed}}}\n')
    with pytest.raises(UserError, match=f"row 0 .line 1.: {reason}: "):
        read_pairs(str(path))


@pytest.mark.parametrize(
    ("value", "read"), [(3.0, "3"), (-0.0, "0"), (2.0**53, "9007199254740992"), (float("nan"), None), (12, "12")]
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_an_id_that_pandas_made_a_float_becomes_an_integer(
    tmp_path: Path, value: Any, read: str | None, suffix: str
) -> None:
    path = tmp_path / f"pairs{suffix}"
    row = {"id": value, "prompt": "q", "chosen": "a", "rejected": "b"}
    if suffix == ".jsonl":
        path.write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    assert read_pairs(str(path)).frame["id"].to_list() == [read]


COLUMNS = {
    "dates beyond Python's": pa.array([2**31 - 1, 0], pa.date32()),
    "times to the nanosecond": pa.array([1, 2], pa.timestamp("ns")),
    "times inside": pa.array([{"at": [1]}, {"at": [2]}], pa.struct({"at": pa.list_(pa.timestamp("ns"))})),
    "spans": pa.array([1, 2], pa.duration("ns")),
    "dates": pa.array([datetime.date(2024, 2, 29), None]),
    "big numbers": pa.array([2**64 - 1, 0], pa.uint64()),
    "NaN": pa.array([float("nan"), float("inf")]),
    "maps": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    "bytes": pa.array([b"\xff", b""]),
    "nothing": pa.nulls(2),
    "text that is not UTF-8": pa.Array.from_buffers(
        pa.string(), 2, pa.array([b"\xff", b"fine"], pa.binary()).buffers()
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_extra_parquet_columns_never_reject_a_row(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pairs.parquet"
    sides = {"prompt": ["q"] * 2, "chosen": ["a"] * 2, "rejected": ["b"] * 2}
    pq.write_table(pa.table({**sides, "other": COLUMNS[kind], "last": [7, 8]}), path)
    frame = read_pairs(str(path)).frame
    assert [json.loads(extra)["last"] for extra in frame["extra"]] == [7, 8]
