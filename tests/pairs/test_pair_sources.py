"""Other sources: CSV, zstd, Arrow, and folders of `save_to_disk`."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather as feather
import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files import bounds
from mrpo_pipeline.pairs import read_pairs, saved_datasets

ROWS: list[dict[str, Any]] = [
    {
        "id": "007",
        "prompt": 'A "quoted", one',
        "chosen": "two\nlines\r\nand more",
        "rejected": "1.50",
        "date": "2024-01-02",
    },
    {"id": "1e5", "prompt": "\u00e9\U0001f600\u2028", "chosen": "True", "rejected": "null", "date": ""},
]


def packed(data: bytes, suffix: str) -> bytes:
    for packing, codec in ((".gz", "gzip"), (".zst", "zstd")):
        if suffix.endswith(packing):
            half = len(data) // 2  # two frames, as appended files have
            return b"".join(pa.compress(part, codec, asbytes=True) for part in (data[:half], data[half:]))
    return data


def written(path: Path, suffix: str, encoding: str = "utf-8") -> Path:
    kind = suffix.split(".")[1]
    if kind in ("csv", "tsv"):
        plain = path / "plain"
        with plain.open("w", newline="", encoding=encoding) as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
        data = plain.read_bytes()
    else:
        text = json.dumps(ROWS) if kind == "json" else "\n".join(map(json.dumps, ROWS))
        data = text.encode()
    file = path / f"pairs{suffix}"
    file.write_bytes(packed(data, suffix))
    return file


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".json", ".csv", ".tsv"])
def test_every_text_format_gives_the_same_rows_with_any_compression(tmp_path: Path, kind: str, packing: str) -> None:
    frame = read_pairs(str(written(tmp_path, kind + packing))).frame
    assert frame["id"].to_list() == ["007", "1e5"]
    assert [json.loads(prompt) for prompt in frame["prompt"]] == [row["prompt"] for row in ROWS]
    assert frame["chosen"].to_list() == [row["chosen"] for row in ROWS]
    assert frame["rejected"].to_list() == ["1.50", "null"]
    assert [json.loads(extra) for extra in frame["extra"]] == [{"date": "2024-01-02"}, {"date": ""}]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    assert read_pairs(str(written(tmp_path, ".csv", "utf-8-sig"))).frame["id"].to_list() == ["007", "1e5"]


def test_bad_csv_rows_are_reported_by_number(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(
        b'prompt,chosen,rejected\nq,"a\nb",c\nq,a\n\nq,a,b,c\nq,"a"x,b\nq,\xff,b\nq,good,bad\nq,a,"never closed\n'
    )
    with pytest.raises(UserError) as caught:
        read_pairs(str(path))
    listed = [
        ": ".join(one.strip().removeprefix(f"{path}: ").split(": ")[:2]) for one in str(caught.value).splitlines()[1:-1]
    ]
    assert listed == [
        "row 1 (line 4): wrong number of fields",
        "row 2 (line 6): wrong number of fields",
        "row 3 (line 7): invalid CSV",
        "row 4 (line 8): invalid UTF-8",
        "row 6 (line 10): invalid CSV",
    ]
    assert read_pairs(str(path), on_bad_row="skip").frame["chosen"].to_list() == ["a\nb", "good"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"prompt;chosen;rejected\nq;a;b\n", "found ';'"),
        (b"prompt\tchosen\trejected\nq\ta\tb\n", "a file with tabs is named .tsv"),
        (b"prompt,chosen,chosen\nq,a,b\n", "'chosen' twice"),
        (b"prompt,chosen,rejected\n", "is empty"),
        (b"", "is empty"),
        ("prompt,chosen,rejected\nq,a,b\n".encode("utf-16"), "the header of this file cannot be read"),
    ],
)
def test_an_invalid_csv_header_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "pairs.csv").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_pairs(str(tmp_path / "pairs.csv"))


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".csv.zst"])
def test_a_truncated_zstd_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="zstd file is damaged or truncated"):
        read_pairs(str(path))


def test_an_unclosed_quote_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv.zst"
    path.write_bytes(pa.compress(b'prompt,chosen,rejected\nq,"' + b"a\n" * (2 << 20), "zstd", asbytes=True))
    with pytest.raises(UserError, match="more than 64 MiB"):
        read_pairs(str(path))


def saved(path: Path, *splits: str) -> Path:
    parts = {split: datasets.Dataset.from_list([{**row, "id": split} for row in ROWS]) for split in splits}
    (datasets.DatasetDict(parts) if len(parts) > 1 else parts[splits[0]]).save_to_disk(str(path), num_proc=None)
    return path


def test_a_saved_data_set_is_read_by_its_split_and_the_split_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, several = saved(tmp_path / "one", "whatever"), saved(tmp_path / "several", "train", "test", "more")
    assert read_pairs(str(one)).frame["id"].to_list() == ["whatever"] * 2
    with caplog.at_level(logging.INFO, "mrpo"):
        assert read_pairs(str(several)).frame["id"].to_list() == ["train"] * 2
    assert "reading the split train (of " in caplog.text
    assert read_pairs(str(several), held_out=True).frame["id"].to_list() == ["test"] * 2
    assert read_pairs(str(several), split="more").frame["id"].to_list() == ["more"] * 2
    with pytest.raises(UserError, match=r"the split 'no' does not exist; expected one of train, test, more.*--split"):
        read_pairs(str(several), split="no")


def test_an_ambiguous_split_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    several = saved(tmp_path / "several", "train_prefs", "train_sft", "test", "validation")
    with pytest.raises(UserError, match=r"train_prefs, train_sft, test, validation.*--split"):
        read_pairs(str(several))
    with pytest.raises(UserError, match="--eval-split"):
        read_pairs(str(several), held_out=True)
    with pytest.raises(UserError, match="one unnamed split; expected 'train'"):
        read_pairs(str(saved(tmp_path / "one", "x")), split="train")
    with pytest.raises(UserError, match=r"the split 'train' is requested, but this source has no splits"):
        read_pairs(str(written(tmp_path, ".csv")), split="train")


def test_a_saved_folder_cannot_name_files_outside_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "one", "x")
    state = json.loads((folder / "state.json").read_text())
    for names in (["../pairs.arrow"], [], ["none.arrow"]):
        (folder / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": one} for one in names]}))
        with pytest.raises(UserError, match=r"lists no Arrow files|is missing"):
            read_pairs(str(folder))
    with pytest.raises(UserError, match="must be a list of names"):
        saved_datasets._names(str(folder), "state.json", "_fingerprint")


def test_metadata_in_a_folder_is_not_read_as_pairs(tmp_path: Path) -> None:
    written(tmp_path, ".jsonl")
    for name in ("dataset_info.json", "dataset_infos.json", "README.md"):
        (tmp_path / name).write_text('{"splits": {}}')
    assert read_pairs(str(tmp_path)).rows == 2
    assert read_pairs(str(tmp_path / "*.json*")).rows == 2


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_compressed_and_uncompressed_arrow_files_are_read(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "pairs.arrow"
    feather.write_feather(pa.Table.from_pylist(ROWS * 900), str(path), compression=compression, chunksize=700)
    frame = read_pairs(str(path)).frame
    assert frame["chosen"].to_list() == [row["chosen"] for row in ROWS] * 900
    assert frame["row"].to_list() == list(range(1800))


def test_damaged_or_oversized_arrow_files_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.arrow"
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    feather.write_feather(pa.Table.from_pylist([{**row, "x": "y" * (4 << 20)}]), str(path), compression="zstd")
    whole = path.read_bytes()
    for data in (whole[:-300], b"ARROW1\0\0", b"", whole[:100], b"\xff\xff\xff\xff\xff\xff\xff\x7f" * 20):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"Arrow file is damaged|is empty"):
            read_pairs(str(path))
    path.write_bytes(whole)
    monkeypatch.setattr(bounds, "FREE_EXPANSION", 1 << 20)
    with pytest.raises(UserError, match="a batch of this Arrow file has"):
        read_pairs(str(path))
    text = pa.repeat(pa.scalar(0, pa.int32()), 100_000)
    table = pa.table(
        {
            **{name: [one] * 100_000 for name, one in row.items()},
            "x": pa.DictionaryArray.from_arrays(text, ["y" * 100_000]),
        }
    )
    feather.write_feather(table, str(path), compression="uncompressed")
    with pytest.raises(UserError, match="over 100 times as many"):
        read_pairs(str(path))
