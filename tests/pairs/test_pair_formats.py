"""Every format gives the same table, and errors name the file."""

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import read_pairs

ROWS: list[dict[str, Any]] = [
    {
        "id": f"r{index}",
        "prompt": [{"role": "user", "content": f"Question {index}?"}],
        "chosen": [{"role": "assistant", "content": f"Good \u00e9\U0001f600 {index}"}],
        "rejected": [{"role": "assistant", "content": f"Bad\r\n {index}"}],
        "score": index,
    }
    for index in range(5)
]


def lines(rows: list[dict[str, Any]], **options: Any) -> bytes:
    return "\n".join(json.dumps(row, **options) for row in rows).encode()


def write(folder: Path, kind: str) -> Path:
    path = folder / f"pairs{kind}"
    if kind in (".jsonl", ".json"):
        path.write_bytes(lines(ROWS))
    elif kind in (".jsonl.gz", ".json.gz"):
        path.write_bytes(gzip.compress(lines(ROWS, ensure_ascii=False)))
    elif kind == "-list.json":
        path.write_text(json.dumps(ROWS, indent=2))
    elif kind == "-bom.jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\r\n\r\n"))
    elif kind == "-bom-list.json":
        path.write_bytes(b"\xef\xbb\xbf\n" + json.dumps(ROWS).encode())
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
    return path


KINDS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", "-list.json", "-bom.jsonl", "-bom-list.json", ".parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_table(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    frame = read_pairs(str(path)).frame
    assert frame.schema == {
        "file": pl.String, "row": pl.Int64, "pair_in_row": pl.Int32, "id": pl.String, "pair_id": pl.String,
        "prompt": pl.String, "chosen": pl.String, "rejected": pl.String, "extra": pl.String,
    }  # fmt: skip
    assert frame["file"].to_list() == [str(path)] * 5
    assert frame["row"].to_list() == [0, 1, 2, 3, 4]
    assert frame["id"].to_list() == [row["id"] for row in ROWS]
    assert frame["prompt"].to_list() == [f'[{{"role":"user","content":"Question {index}?"}}]' for index in range(5)]
    assert frame["chosen"].to_list() == [row["chosen"][0]["content"] for row in ROWS]
    assert frame["rejected"].to_list() == [row["rejected"][0]["content"] for row in ROWS]
    assert frame["extra"].to_list() == [f'{{"score":{index}}}' for index in range(5)]
    assert frame["pair_id"].n_unique() == 5


def test_folders_globs_and_lists_give_files_in_a_fixed_order(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "_tmp.jsonl", "notes.txt", "deep/c.jsonl"):
        (data / name).write_bytes(lines(ROWS[:1]))
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), data / "z.parquet")

    def files(source: Any) -> list[str]:
        return [str(Path(name).relative_to(data)) for name in read_pairs(source).frame["file"]]

    assert files(str(data)) == ["a.jsonl", "b.jsonl", "z.parquet"]
    assert files(str(data / "*.jsonl")) == ["_tmp.jsonl", "a.jsonl", "b.jsonl"]
    assert files(str(data / "**" / "*")) == ["_tmp.jsonl", "a.jsonl", "b.jsonl", "deep/c.jsonl", "z.parquet"]
    assert files([str(data / "b.jsonl"), str(data / "deep")]) == ["b.jsonl", "deep/c.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs[1].jsonl"
    path.write_bytes(lines(ROWS))
    assert read_pairs(str(path)).rows == 5


def test_a_file_listed_twice_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl")
    with pytest.raises(UserError, match="listed twice"):
        read_pairs([str(path), str(tmp_path / "*.jsonl")])


@pytest.mark.parametrize("source", [".jsonl", ".jsonl.gz", "-list.json", ".parquet"])
def test_urls_are_read_like_files(tmp_path: Path, source: str) -> None:
    path = write(tmp_path, source)
    frame = read_pairs(f"file://{path}").frame
    assert frame.drop("file").equals(read_pairs(str(path)).frame.drop("file"))
    assert all(name.endswith(path.name) for name in frame["file"])


def test_urls_may_be_globs(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("one", "two"):
        memory.pipe_file(f"/mrpo-pairs/{name}.jsonl", lines(ROWS))
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / f"{name}.parquet")
    for url in ("memory://mrpo-pairs/*.jsonl", f"file://{tmp_path}/*.parquet"):
        frame = read_pairs(url).frame
        assert frame["row"].to_list() == [0, 1, 2, 3, 4] * 2
        assert [Path(name).stem for name in frame["file"]] == ["one"] * 5 + ["two"] * 5


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere/pairs.jsonl", "this URL could not be read"),
        ("memory://nowhere/*.jsonl", "no file matches"),
        ("file:///nowhere/pairs.parquet", "this URL could not be read"),
        ("madeup://nowhere/pairs.jsonl", "this URL could not be read"),
        ("https://nowhere.invalid/", "unsupported file type (.invalid); expected .jsonl"),
    ],
)
def test_a_url_that_cannot_be_read_is_named(url: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_pairs(url)
    assert str(caught.value).startswith(f"{url}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged(folder: Path, kind: str) -> tuple[Path, str]:
    """A file or folder that cannot be read, and the expected message."""
    packed = gzip.compress(lines(ROWS * 1000))
    parquet = write(folder, ".parquet").read_bytes()
    content, name, message = {
        "missing": (None, "no.jsonl", "there is no such file"),
        "missing folder": (None, "no/no.jsonl", ", nor its folder"),
        "no match": (None, "no*.jsonl", "no file matches"),
        "unknown kind": (b"a,b", "pairs.xlsx", "unsupported file type (.xlsx)"),
        "empty": (b"", "empty.jsonl", "is empty"),
        "blank": (b"\n \r\n\t\n", "blank.jsonl", "is empty"),
        "empty list": (b" [ ]\n", "list.json", "is empty"),
        "empty gzip": (gzip.compress(b""), "empty.jsonl.gz", "is empty"),
        "no gzip": (lines(ROWS), "plain.jsonl.gz", "gzip file is damaged"),
        "cut gzip": (packed[: len(packed) // 2], "cut.jsonl.gz", "gzip file is damaged or truncated"),
        "spoilt gzip": (packed[:100] + b"\0" * 50 + packed[150:], "bad.jsonl.gz", "gzip file is damaged"),
        "cut parquet": (parquet[:-20], "cut.parquet", "Parquet file is damaged"),
        "spoilt parquet": (b"PAR1" + b"\xff" * 600 + parquet[604:], "bad.parquet", "Parquet file is damaged"),
        "empty parquet": (b"", "zero.parquet", "Parquet file is damaged"),
        "cut list": (json.dumps(ROWS).encode()[:-1], "cut.json", "never closed"),
        "list and more": (b"[{}] []", "more.json", "text comes after the end"),
        "one object": (json.dumps(ROWS[0], indent=1).encode(), "one.json", "one JSON object over several lines"),
    }[kind]
    if content is not None:
        (folder / name).write_bytes(content)
    return folder / name, message


@pytest.mark.parametrize("mode", ["error", "skip"])
@pytest.mark.parametrize(
    "kind",
    [
        "missing", "missing folder", "no match", "unknown kind", "empty", "blank", "empty list", "empty gzip", "no gzip",
        "cut gzip", "spoilt gzip", "cut parquet", "spoilt parquet", "empty parquet", "cut list", "list and more",
        "one object",
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_paragraph_that_names_it(tmp_path: Path, kind: str, mode: Any) -> None:
    path, message = damaged(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        read_pairs(str(path), on_bad_row=mode)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_an_empty_list_are_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="contains no data file"):
        read_pairs(str(tmp_path))
    with pytest.raises(UserError, match="the list is empty"):
        read_pairs([])


def test_a_parquet_file_of_no_rows_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    pl.DataFrame(schema={"prompt": pl.String, "chosen": pl.String, "rejected": pl.String}).write_parquet(path)
    with pytest.raises(UserError, match="is empty"):
        read_pairs(str(path))


def test_parquet_columns_without_a_json_form_are_kept_as_text(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    count = 2
    table = pa.table(
        {
            "prompt": pa.array(["Q"] * count).dictionary_encode(),
            "chosen": pa.array(["a"] * count, pa.large_string()),
            "rejected": pa.array(["b"] * count, pa.string_view()),
            "when": pa.array([1, None], pa.timestamp("ns")),
            "bytes": [b"\xff\x00"] * count,
            "price": pa.array(["1.50"] * count).cast(pa.decimal128(5, 2)),
            "score": [float("nan"), 0.5],
            "inner": [{"x": [float("inf"), 1.0]}] * count,
        }
    )
    pq.write_table(table, path)
    first, second = map(json.loads, read_pairs(str(path)).frame["extra"])
    assert first.pop("when").startswith("1970-01-01 00:00:00.000000001")
    assert first == {"bytes": "/wA=", "price": "1.50", "score": None, "inner": {"x": [None, 1.0]}}
    assert second == {"bytes": "/wA=", "price": "1.50", "score": 0.5, "inner": {"x": [None, 1.0]}}


def test_invalid_utf8_in_parquet_affects_only_its_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"prompt": ["Q"] * 3, "chosen": text, "rejected": ["b"] * 3}), path)
    with pytest.raises(UserError, match=r"pairs.parquet: row 1: invalid UTF-8: `chosen`"):
        read_pairs(str(path))
    assert read_pairs(str(path), on_bad_row="skip").frame["chosen"].to_list() == ["good", "fine"]


def test_a_parquet_file_with_a_duplicate_column_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    columns = [pa.array(["x"])] * 4
    pq.write_table(pa.Table.from_arrays(columns, names=["prompt", "chosen", "rejected", "chosen"]), path)
    with pytest.raises(UserError, match="has the column 'chosen' twice"):
        read_pairs(str(path))


def test_a_mapped_column_missing_from_a_parquet_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, ".parquet")
    with pytest.raises(UserError, match=r"no row has the column 'choosen'.*did you mean 'chosen'"):
        read_pairs(str(path), columns={"chosen": "choosen"})
