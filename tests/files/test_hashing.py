"""Cached hashes are those of the bytes, and a changed file is hashed again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrpo_pipeline.files import hashing
from mrpo_pipeline.files.hashing import sha256_of_files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hashing, "SETTLED_NS", 0)
    return tmp_path / "home"


def test_hashes_are_cached_and_follow_a_change(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode() * 1000)
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert sha256_of_files([*paths, paths[0]]) == [*expected, expected[0]]

    def refuse(path: str) -> tuple[str, str]:
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patch:
        patch.setattr(hashing, "_hash", refuse)
        assert sha256_of_files(paths) == expected

    # The same size and modification time: the change time differs.
    times = paths[1].stat()
    paths[1].write_bytes(b"z" * 1000)
    os.utime(paths[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert sha256_of_files(paths)[1] == hashlib.sha256(b"z" * 1000).hexdigest()
    assert [path.name for path in home.iterdir()] == ["content.json"]


def test_a_write_through_an_open_memory_map_is_seen(tmp_path: Path, home: Path) -> None:
    """Writes to a dirty page do not change the file's times until it is flushed."""
    import mmap

    (tmp_path / "a").write_bytes(bytes(8192))
    with (tmp_path / "a").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[10] = 1
        before = sha256_of_files([tmp_path / "a"])[0]
        assert str(tmp_path / "a") in json.loads((home / "content.json").read_text())
        mapped[11] = 1
        after = sha256_of_files([tmp_path / "a"])[0]
        assert after == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest() != before


def test_a_replaced_file_is_seen(tmp_path: Path, home: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 100)
        os.utime(tmp_path / name, ns=(1, 1))
    first = sha256_of_files([tmp_path / "a"])
    os.replace(tmp_path / "b", tmp_path / "a")
    assert sha256_of_files([tmp_path / "a"]) != first


def test_a_recently_changed_file_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    (tmp_path / "a").write_bytes(b"a")
    sha256_of_files([tmp_path / "a"])
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("memo", ["", "[]", "{", '{"a": 1}', '{"a": [1, 2]}'])
def test_a_damaged_cache_file_is_rebuilt(tmp_path: Path, home: Path, memo: str) -> None:
    home.mkdir()
    (home / "content.json").write_text(memo)
    (tmp_path / "a").write_bytes(b"a")
    assert sha256_of_files([tmp_path / "a"]) == [hashlib.sha256(b"a").hexdigest()]
    assert list(json.loads((home / "content.json").read_text())) == [str(tmp_path / "a")]


def test_a_read_only_home_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "SETTLED_NS", 0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "file" / "home"))
    (tmp_path / "a").write_bytes(b"a")
    assert sha256_of_files([tmp_path / "a"]) == [hashlib.sha256(b"a").hexdigest()]


def test_concurrent_processes_leave_a_complete_cache_file(tmp_path: Path, home: Path) -> None:
    (tmp_path / "files").mkdir()
    for number in range(30):
        (tmp_path / "files" / str(number)).write_bytes(b"x" * number)
    code = (
        "import sys; from pathlib import Path; from mrpo_pipeline.files import hashing; hashing.SETTLED_NS = 0\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()): hashing.sha256_of_files([path])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "files")]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    memo = json.loads((home / "content.json").read_text())
    for path, (_, digest) in memo.items():
        assert digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert [path.name for path in home.iterdir()] == ["content.json"]
