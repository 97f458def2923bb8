"""Small files that expand to gigabytes are rejected in little memory; valid large or unusual files are read."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files import bounds, parquet_pages
from mrpo_pipeline.pairs import parquet_records, read_pairs
from mrpo_pipeline.pairs.sources import PairFile

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
MEGABYTE = "x" * (1 << 20)

# A separate process, so that its peak memory is the reader's.
READ = """
import sys
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files import bounds
from mrpo_pipeline.pairs import read_pairs
bounds.FREE_EXPANSION = 16 << 20
try:
    print(read_pairs(sys.argv[1]).rows)
except UserError as error:
    print(str(error).replace(chr(10), " "))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def sides(rows: int) -> dict[str, Any]:
    return {name: [text] * rows for name, text in PAIR.items()}


def repeated(text: str, rows: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array([text]))


def listed(values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def parquet(path: Path, table: dict[str, Any], **options: Any) -> None:
    pq.write_table(pa.table(table), path, compression="zstd", write_statistics=False, **options)


def bomb(path: Path, kind: str) -> None:
    if kind == "cell.parquet":
        parquet(path, {**sides(1), "x": [MEGABYTE * 128]}, use_dictionary=False)
    elif kind == "dictionary.parquet":
        parquet(path, {**sides(100_000), "chosen": repeated(MEGABYTE, 100_000)})
    elif kind == "dictionary in a list.parquet":
        parquet(path, {**sides(1), "x": listed(repeated(MEGABYTE, 5000))})
    elif kind == "nulls in a list.parquet":
        parquet(path, {**sides(1), "x": listed(pa.nulls(10_000_000))})
    elif kind == "rows.parquet":
        rows = 2_000_000
        parquet(path, {name: repeated(text, rows) for name, text in PAIR.items()}, row_group_size=rows)
    elif kind == "columns.parquet":
        parquet(path, {**sides(1), **{f"c{index}": [1] for index in range(10_000)}})
    elif kind == "line.jsonl.gz":
        path.write_bytes(gzip.compress(b"x" * (256 << 20), 1))
    elif kind == "lines.jsonl.gz":
        row = json.dumps({**PAIR, "x": MEGABYTE}).encode() + b"\n"
        path.write_bytes(gzip.compress(row, 9) * 40)
    elif kind == "values.jsonl":
        path.write_text(json.dumps(PAIR)[:-1] + ', "x": [' + "{}," * 2_000_000 + "1]}")
    else:
        raise AssertionError(kind)


BOMBS = {
    "cell.parquet": "a page of this Parquet file has",
    "dictionary.parquet": "over 100 times as many",
    "dictionary in a list.parquet": "over 100 times as many",
    "nulls in a list.parquet": "a column of this Parquet file has",
    "rows.parquet": "over 100 times as many",
    "columns.parquet": "10,003 columns",
    "line.jsonl.gz": "more than 64 MiB",
    "lines.jsonl.gz": "over 100 times as many",
    "values.jsonl": "too many values",
}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("kind", BOMBS)
def test_a_decompression_bomb_is_rejected_in_little_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    bomb(path, kind)
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    message, peak = done.stdout.splitlines()
    assert BOMBS[kind] in message
    assert str(path) in message
    assert int(peak) < 300 << 10  # KiB


def test_page_sizes_come_from_page_headers_and_not_the_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FREE_EXPANSION", 1 << 20)
    path = tmp_path / "pairs.parquet"
    parquet(path, {**sides(1), "x": [MEGABYTE * 2]}, use_dictionary=False)

    class Lying:
        """The file's metadata with changed column sizes."""

        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return 1 if name in ("total_byte_size", "total_uncompressed_size") else getattr(self._real, name)

        def row_group(self, index: int) -> Any:
            return Lying(self._real.row_group(index))

        def column(self, index: int) -> Any:
            return Lying(self._real.column(index))

    with path.open("rb") as stream, pytest.raises(UserError, match="a page of this Parquet file has"):
        parquet_pages.check_pages(stream, str(path), Lying(pq.read_metadata(path)), range(1))


ENCODINGS: list[dict[str, Any]] = [
    {},
    {"data_page_version": "2.0", "compression": "snappy"},
    {"use_dictionary": False, "compression": "none"},
    {"dictionary_pagesize_limit": 2000, "data_page_size": 3000, "write_batch_size": 64, "write_page_index": True},
    {"use_dictionary": False, "column_encoding": {"chosen": "DELTA_BYTE_ARRAY", "rejected": "DELTA_LENGTH_BYTE_ARRAY"}},
    {"use_byte_stream_split": ["score"], "use_dictionary": ["chosen"], "write_statistics": False},
]


@pytest.mark.parametrize("options", ENCODINGS, ids=lambda one: ", ".join(one) or "as it comes")
def test_valid_parquet_is_read_with_any_page_layout(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "pairs.parquet"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {index % 50}?" * 20}] * (1 + index % 3),
            "chosen": f"answer {index % 70}",
            "rejected": f"other {index}",
            "score": None if index % 5 == 0 else index / 4,
        }
        for index in range(2500)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1100, **options)
    frame = read_pairs(str(path)).frame
    assert [json.loads(prompt) for prompt in frame["prompt"]] == [row["prompt"] for row in rows]
    assert frame["chosen"].to_list() == [row["chosen"] for row in rows]
    assert frame["rejected"].to_list() == [row["rejected"] for row in rows]
    scores = [None if extra is None else json.loads(extra)["score"] for extra in frame["extra"]]
    assert scores == [row["score"] for row in rows]


def test_an_object_of_many_keys_is_read_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    keys = {f"k{index}": index for index in range(100_000)}
    # A quadratic search for duplicate keys would take minutes.
    path.write_text(json.dumps({**PAIR, **keys})[:-1] + ', "k99999": 1}')
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[0] == "1"


@pytest.mark.parametrize("texts", [str, lambda text: [{"role": "user", "content": text}]])
def test_row_groups_of_one_row_are_read_in_a_few_batches(
    tmp_path: Path, texts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": texts(f"q{index % 7}"), "chosen": texts("a"), "rejected": texts("b")} for index in range(3000)]
    rows[1500]["prompt"] = texts("long " * 20_000)  # a group that is not small
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)
    batches: list[int] = []
    decode = parquet_records.arrow_rows
    monkeypatch.setattr(parquet_records, "arrow_rows", lambda batch: batches.append(len(batch)) or decode(batch))
    read = [record.value for record in parquet_records.parquet_records(PairFile(str(path), ".parquet", remote=False))]
    assert read == rows
    assert len(batches) <= 6


def test_a_list_that_repeats_a_long_text_is_not_a_small_row_group(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    row = {"prompt": ["x" * 1000] * 200, "chosen": "a", "rejected": "b"}
    pq.write_table(pa.Table.from_pylist([row] * 2), path, row_group_size=1)
    with open(path, "rb") as stream:
        pages = parquet_pages.check_pages(stream, str(path), pq.read_metadata(path), range(2))
    assert pages.small == set()
