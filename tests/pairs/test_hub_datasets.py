"""Data sets on the Hub: the files of a name, subset and split, their download, and errors.

The Hub is a stub on loopback (hub_stub.py). The client, its cache and the readers are real and run in a separate process, because
`huggingface_hub` reads the Hub's address on import.
"""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_stub import Files, Hub, commit_of, serving

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import read_pairs

READER = Path(__file__).with_name("read_sources.py")


def rows(*names: str) -> list[dict[str, str]]:
    return [{"id": name, "prompt": f"q {name}", "chosen": "a", "rejected": "b"} for name in names]


def lines(*names: str) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(*names)).encode()


def parquet(*names: str) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(*names)), written)
    return written.getvalue()


def card(text: str) -> bytes:
    return f"---\nlicense: mit\n{text}\n---\n# Some pairs\n".encode()


def config(name: str, *splits: str, folder: str = "data", more: str = "") -> str:
    files = "".join(f"\n  - split: {split}\n    path: {folder}/{split}-*" for split in splits)
    return f"\n- config_name: {name}{more}\n  data_files:{files}"


DATA: Files = {
    "data/train-00000-of-00002-aa.parquet": parquet("t0"),
    "data/train-00001-of-00002-bb.parquet": parquet("t1"),
    "data/test-00000-of-00001.parquet": parquet("e0"),
    ".gitattributes": b"",
}
NAMED = {"README.md": card("configs:" + config("default", "train", "test")), **DATA}
SUBSETS = {
    "README.md": card("configs:" + config("one", "train", folder="one") + config("2", "train", "test", folder="two")),
    "one/train-0.jsonl": lines("1"),
    "two/train-0.jsonl": lines("2"),
    "two/test-0.jsonl": lines("2e"),
}
DEFAULT = {**SUBSETS, "README.md": SUBSETS["README.md"].replace(b"name: one", b"name: one\n  default: true")}
SETS: dict[str, dict[str, Files]] = {
    "org/named": {"main": NAMED, "v1": {"train.jsonl": lines("old")}},
    "org/plain": {"main": DATA},
    "org/prefs": {
        "main": {f"data/{one}-00000-of-00001.parquet": parquet(one) for one in ("train_prefs", "test_prefs")}
    },
    "org/subsets": {"main": SUBSETS},
    "org/default": {"main": DEFAULT},
    "org/folders": {"main": {f"{a}/{b}.jsonl": lines(a + b) for a in ("x", "y") for b in ("train", "test")}},
    "org/one": {"main": {"pairs.json": json.dumps(rows("only")).encode(), "dataset_infos.json": b"{}"}},
    "org/script": {
        "main": {"script.py": b"raise SystemExit(3)", "README.md": b"# x"},
        "refs/convert/parquet": {f"default/{one}/0000.parquet": parquet(one) for one in ("train", "test")},
    },
    "org/script2": {"main": {"script2.py": b"raise SystemExit(3)"}},
    "org/gated": {"main": NAMED},
    "org/text": {"main": {"data/train.txt": b"words"}},
}
# (options, ids of the pairs)
READ: list[tuple[dict[str, Any], list[str]]] = [
    ({"source": "org/named"}, ["t0", "t1"]),
    ({"source": "org/named", "held_out": True}, ["e0"]),
    ({"source": "org/named", "split": "test"}, ["e0"]),
    ({"source": "hf://datasets/org/named"}, ["t0", "t1"]),
    ({"source": "org/named@v1"}, ["old"]),
    ({"source": "hf://datasets/org/named@v1/train.jsonl"}, ["old"]),
    ({"source": "hf://datasets/org/named/data/t*-00000-of-*.parquet"}, ["e0", "t0"]),
    ({"source": "org/plain"}, ["t0", "t1"]),
    ({"source": "org/prefs", "split": "train_prefs"}, ["train_prefs"]),
    ({"source": "org/subsets", "subset": "2"}, ["2"]),
    ({"source": "org/default"}, ["1"]),
    ({"source": "org/folders"}, ["xtrain", "ytrain"]),
    ({"source": "hf://datasets/org/folders/y", "held_out": True}, ["ytest"]),
    ({"source": "org/one"}, ["only"]),
    ({"source": "org/script"}, ["train"]),
    ({"source": "org/script@refs/convert/parquet", "held_out": True}, ["test"]),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"source": "org/named", "split": "no"}, "the split 'no' does not exist; expected one of train, test. Correct pairs.split"),
    ({"source": "org/named", "subset": "no"}, "the subset 'no' does not exist; expected one of default. Correct pairs.subset"),
    ({"source": "org/plain", "subset": "no"}, "has no subsets"),
    ({"source": "org/prefs"}, "has the splits test_prefs, train_prefs. Choose one with pairs.split"),
    ({"source": "org/subsets"}, "has the subsets one, 2. Choose one with pairs.subset"),
    ({"source": "org/named@v2"}, "revision of the data set does not exist"),
    ({"source": "hf://datasets/org/named/data/no.parquet"}, "no file or folder of this name"),
    ({"source": "org/script2"}, "a loader script and no data files, and scripts are never run"),
    ({"source": "org/gated"}, "is gated"),
    ({"source": "org/absent"}, "no such file or folder exists here, and the Hub has no data set of this name"),
    ({"source": "org/broken"}, "the Hub cannot be reached"),
    ({"source": "org/text"}, "has no data file (expected .jsonl"),
    ({"source": "hf://datasets/name"}, "expected hf://datasets/ORGANISATION/NAME"),
    ({"source": "org/absent.jsonl"}, "there is no such file of preference pairs, nor its folder org"),
]  # fmt: skip


def read_apart(folder: Path, options: list[dict[str, Any]], endpoint: str, *, offline: bool) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")} | (
        {"HF_HUB_OFFLINE": "1"} if offline else {}
    )
    ran = subprocess.run(
        [sys.executable, READER],
        check=False,
        input=json.dumps(options),
        env=environment,
        cwd=folder,
        text=True,
        capture_output=True,
    )
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    answers: list[dict[str, Any]] = json.loads(ran.stdout)
    return answers


def cached_by_hand(folder: Path, name: str, files: Files) -> None:
    """A cached commit as `hf_hub_download` leaves it, without a file list."""
    place = folder / "home/hub" / f"datasets--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    for file, data in files.items():
        path = place / "snapshots" / ("0" * 40) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_a_data_set_is_read_at_one_commit_and_then_offline(tmp_path: Path) -> None:
    options = [given for given, _ in READ]
    with serving(Hub(SETS, gated=frozenset({"org/gated"}), broken=frozenset({"org/broken"}))) as hub:
        online = read_apart(tmp_path, options + [given for given, _ in REFUSED], hub.endpoint, offline=False)
    assert [answer.get("ids", answer.get("error")) for answer in online[: len(READ)]] == [ids for _, ids in READ]
    for (_, message), answer in zip(REFUSED, online[len(READ) :], strict=True):
        assert message in answer["error"] and "\n" not in answer["error"]
        assert answer["seconds"] < 5
    commit = commit_of("main", NAMED)
    assert online[0]["reported"] == [
        f"org/named: reading this data set from the Hub at revision {commit}.",
        "org/named: reading the split train (of train, test).",
    ]
    assert [Path(file).parts[-3] for file in online[0]["files"]] == [commit] * 2
    assert "org/default: reading the subset one (of one, 2), the default in README.md." in online[10]["reported"]
    assert any("reading the Hub's Parquet conversion" in line for line in online[14]["reported"])
    # A process resolves one commit, and downloads neither scripts nor other splits.
    assert hub.asked.count("/api/datasets/org/named/revision/main") == 1
    assert not [path for path in hub.asked if path.endswith(".py") or "test_prefs" in path]

    cached_by_hand(tmp_path, "org/cached", NAMED)
    cached_by_hand(tmp_path, "org/partly", {name: data for name, data in NAMED.items() if "train" not in name})
    cached_by_hand(tmp_path, "org/lacking", {name: data for name, data in DATA.items() if "00001-of-00002" not in name})
    cached_by_hand(tmp_path, "org/alone", {"test.jsonl": lines("e")})
    by_hand = [{"source": f"org/{name}"} for name in ("cached", "partly", "lacking", "alone")]
    extra = [*by_hand, {"source": "org/alone", "split": "test"}, {"source": "org/prefs", "split": "test_prefs"}]
    offline = read_apart(tmp_path, options + extra, "http://127.0.0.1:9", offline=True)
    assert [answer.get("ids", answer.get("error")) for answer in offline[: len(READ)]] == [ids for _, ids in READ]
    cached, partly, lacking, alone, named, not_downloaded = offline[len(READ) :]
    assert cached["ids"] == ["t0", "t1"]
    assert "lists data/train-* for the split train, but no data file matches" in partly["error"]
    assert "data/train-00001-of-00002.parquet is missing (1 of 2 parts found)" in lacking["error"]
    assert "only the split test of this data set is in the Hugging Face cache" in alone["error"]
    assert named["ids"] == ["e"]
    assert "the Hub cannot be reached (HF_HUB_OFFLINE is set)" in not_downloaded["error"]


def copied(folder: Path, files: Files) -> str:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


def ids(source: str, **options: Any) -> list[str]:
    return read_pairs(source, **options).frame["id"].to_list()


def test_a_copy_of_a_data_set_has_the_same_subsets_and_splits(tmp_path: Path) -> None:
    for name, files in (("named", NAMED), ("plain", DATA)):
        folder = copied(tmp_path / name, files)
        assert (ids(folder), ids(folder, held_out=True)) == (["t0", "t1"], ["e0"])
    folder = copied(tmp_path / "subsets", SUBSETS)
    assert ids(folder, subset="2", split="test") == ["2e"]
    with pytest.raises(UserError, match=r"has the subsets one, 2\. .*pairs\.subset"):
        read_pairs(folder)
    with pytest.raises(UserError, match=r"has the subsets one, 2\. .*pairs\.eval_subset"):
        read_pairs(folder, held_out=True)


def test_a_local_folder_takes_precedence_over_the_hub_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copied(tmp_path / "org/here", NAMED)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, "mrpo"):
        assert ids("org/here") == ["t0", "t1"]
    assert (
        "reading the local folder of this name; for the data set on the Hub use hf://datasets/org/here" in caplog.text
    )


@pytest.mark.parametrize(
    ("names", "train", "held_out"),
    [
        (["train.jsonl", "test.jsonl"], ["train"], ["test"]),
        (["my_train_1.jsonl", "my_train_2.jsonl", "my_validation.jsonl"], ["my_train_1", "my_train_2"], ["my_validation"]),
        (["train-00000-of-00001.jsonl", "dev-00000-of-00001.jsonl"], ["train-00000-of-00001"], ["dev-00000-of-00001"]),
        (["train.jsonl", "more.jsonl"], ["more", "train"], ["more", "train"]),
        (["latest.jsonl", "trained.jsonl", "contest.jsonl"], ["contest", "latest", "trained"], ["contest", "latest", "trained"]),
    ],
)  # fmt: skip
def test_files_of_several_splits_in_a_folder_are_kept_apart(
    tmp_path: Path, names: list[str], train: list[str], held_out: list[str]
) -> None:
    folder = copied(tmp_path, {name: lines(name.removesuffix(".jsonl")) for name in names})
    assert ids(folder) == train
    assert ids(folder, held_out=True) == held_out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jsonl": lines("a"), "test.jsonl": lines("b")}, "test.jsonl has the split test in its name, but a.jsonl has none"),
        ({"train-test.jsonl": lines("a")}, "is in the splits train and test"),
        ({"train_prefs-00000-of-00001.jsonl": lines("a"), "train_sft-00000-of-00001.jsonl": lines("b")}, "splits train_prefs, train_sft"),
        ({"README.md": b"x", "train/test.jsonl": lines("a"), "data/x": b""}, "in a folder of the split train, but its name contains test"),
        ({"README.md": b"x", "data/train.jsonl": lines("a"), "data/train.csv": b"x"}, "several formats"),
        ({"README.md": card("configs: [{config_name: a, data_files: train.jsonl}]"), "a.jsonl": lines("a")}, "lists train.jsonl"),
        ({"README.md": card("configs: [{config_name: a, data_files: {train: '*'}}"), "a.jsonl": lines("a")}, "cannot be read"),
        ({"README.md": card("configs: [{config_name: a, data_files: 3}]"), "a.jsonl": lines("a")}, "has an unknown format"),
        ({"README.md": card("configs: [{config_name: a, data_files: ../b.jsonl}]"), "a.jsonl": lines("a")}, "lists ../b.jsonl"),
        ({"README.md": card("configs: 3"), "a.jsonl": lines("a")}, "not a list of subsets"),
        (
            {
                "README.md": card("configs: [{config_name: a, data_files: [{split: train, path: a*}, {split: test, path: '*'}]}]"),
                "a.jsonl": lines("a"),
            },
            "is in the splits train and test",
        ),
    ],
)  # fmt: skip
def test_ambiguous_files_are_errors(tmp_path: Path, files: Files, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as caught:
        read_pairs(copied(tmp_path, files))
    assert "\n" not in str(caught.value)
