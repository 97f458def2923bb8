"""Written files are complete, whatever happens to the writing process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from places import FolderPlace, Place
from scored_rows import FINGERPRINT, cache_at, cid, row, wanted, write

from mrpo_pipeline.cache import CompletionRow, Manifest, ReferenceCache
from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.files.atomic import ABANDONED_SECONDS, temporary_name

HERE = Path(__file__).parent

# Writes rows FIRST, FIRST + 1, … one shard for every three, until it has COUNT or is killed.
SCORER = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from places import FolderPlace, Place
from scored_rows import FINGERPRINT, row
from mrpo_pipeline.cache import ReferenceCache
cache = ReferenceCache.open(sys.argv[2], "base")
cache.create_or_check(FINGERPRINT, {"engine": sys.argv[3]})
first, count = int(sys.argv[3]), int(sys.argv[4])
with cache.writer(rows_per_shard=3) as writer:
    for number in range(first, first + count):
        writer.add(row(number, [-number - 1.0, -0.5], [1, 1], True))
"""


def scorer(root: str, first: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCORER, f"{HERE}:{HERE.parent}", str(root), str(first), str(count)]
    return subprocess.Popen(command, text=True)


def check_every_row(cache: ReferenceCache) -> int:
    """Check every shard and row; the number of completions served."""
    assert all(report.problem is None for report in cache.verify())
    served = cache.rows(wanted([(number, None) for number in range(30_000)]))
    expected = {cid(number): [-number - 1.0, -0.5] for number in range(30_000)}
    assert all(expected[one["completion_id"]] == one["logprobs"] for one in served.iter_rows(named=True))
    return served.height


def test_concurrent_writers_lose_nothing(place: Place) -> None:
    running = [scorer(place.root, first, 90) for first in (0, 61)]  # the order of rows differs between their shards
    assert [process.communicate() and process.returncode for process in running] == [0, 0]
    cache = ReferenceCache.open(place.root, "base")
    assert check_every_row(cache) == 151
    assert cache.stats().rows == 180
    assert cache.sums(wanted([(number, None) for number in range(151)]))["logps"].to_list() == [
        -number - 1.5 for number in range(151)
    ]


def test_kill_9_leaves_complete_shards_and_a_rerun_resumes(place: Place) -> None:
    turns = 4 if isinstance(place, FolderPlace) else 2
    for turn in range(turns):
        # Each round starts at another row, so that it writes different shards.
        process = scorer(place.root, turn, 29_000)
        before = len(place.names("base/shards/"))
        while len(place.names("base/shards/")) <= before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(0.003 * turn)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        cache = ReferenceCache.open(place.root, "base")
        check_every_row(cache)
    assert len(place.names("base/shards/")) >= turns - 1
    served = cache.stats().completions
    with cache.writer() as writer:
        writer.add(row(29_999, [-30_000.0, -0.5], [1, 1], True))
    assert check_every_row(cache) == served + 1
    assert not [name for name in place.names() if name.endswith(".partial")]


def test_one_of_many_equal_processes_creates_the_cache(place: Place) -> None:
    for turn in range(20):

        def begin(engine: str, name: str = f"r{turn}") -> Manifest:
            return ReferenceCache.open(place.root, name).create_or_check(FINGERPRINT, {"engine": engine})

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(begin, "abcd"))
        assert len({one.recorded["engine"] for one in made}) == 1


def test_of_two_concurrent_different_references_one_is_refused(place: Place) -> None:
    for turn in range(20):

        def begin(template: str, name: str = f"r{turn}") -> str:
            try:
                ReferenceCache.open(place.root, name).create_or_check({**FINGERPRINT, "template": template})
            except UserError as error:
                return str(error)
            return "begun"

        with ThreadPoolExecutor(2) as pool:
            told = sorted(pool.map(begin, ["t1", "t2"]), key=len)
        assert told[0] == "begun"
        assert "`template`" in told[1]


def test_without_hard_links_the_manifest_is_still_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    cache_at(tmp_path)
    storage = LocalStorage(tmp_path / "base")
    assert storage.create("manifest.json", b"other") is False
    cache_at(tmp_path)
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["manifest.json"]


def test_an_exception_in_the_block_keeps_what_was_done(place: Place) -> None:
    cache = cache_at(place.root)
    with pytest.raises(KeyboardInterrupt), cache.writer() as writer:  # noqa: PT012
        writer.add(row(1, [-1.0], [1], True))
        raise KeyboardInterrupt
    assert cache.missing(wanted([(1, None), (2, None)])).height == 1


def test_a_shard_is_written_at_the_maximum_age(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    with cache.writer(rows_per_shard=1000, seconds=0.05) as writer:
        writer.add(row(1, [-1.0], [1], True))
        assert writer.shards == []
        time.sleep(0.06)
        writer.add(row(2, [-1.0], [1], True))
        assert len(writer.shards) == 1
        writer.add(row(3, [-1.0], [1], True))
    assert len(writer.shards) == 2
    with pytest.raises(RuntimeError, match="closed"):
        writer.add(row(4, [-1.0], [1], True))


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (row(5, [-1.0, float("nan")], [1, 1], True), "token 1 of completion"),
        (row(5, [float("-inf"), -1.0], [1, 1], True), "token 0 of completion"),
        (row(5, [-1.0, -1.0], [2, 1], True), "byte ends"),
        (row(5, [], [], False), "0 token ids"),
        (row(5, [-1.0], [1, 2], True), "1 log-probs and 2 byte ends"),
    ],
)
def test_an_invalid_row_is_refused(place: Place, bad: CompletionRow, told: str) -> None:
    cache = cache_at(place.root)
    with pytest.raises(RunError, match=told) as caught, cache.writer() as writer:  # noqa: PT012
        writer.add(row(1, [-1.0], [1], True))
        writer.add(bad)
    assert cid(5) in str(caught.value)
    assert cache.missing(wanted([(1, None), (5, None)]))["completion_id"].to_list() == [cid(5)]


def test_a_malformed_id_is_refused(tmp_path: Path) -> None:
    one = row(1, [-1.0], [1], True)
    bad = CompletionRow("../../x", 1, one.token_ids, one.logprobs, one.byte_ends, True)
    with pytest.raises(RunError, match="32 lower-case hex"):
        write(cache_at(tmp_path), [bad])


def test_a_full_disk_leaves_no_file_and_the_rows_with_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_at(tmp_path)
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with cache.writer() as writer:
        writer.add(row(1, [-1.0], [1], True))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"No space left.*mrpo score-refs"):
            writer.flush()
        assert not [path for path in tmp_path.rglob("*") if path.suffix in (".parquet", ".partial")]
        monkeypatch.setattr(os, "fsync", real)
    assert cache.missing(wanted([(1, None)])).is_empty()


def test_a_failing_last_write_does_not_hide_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_at(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(KeyError) as caught, cache.writer() as writer:  # noqa: PT012
        writer.add(row(1, [-1.0], [1], True))
        monkeypatch.setattr(os, "fsync", full)
        raise KeyError("first")
    assert "No space left" in caught.value.__notes__[0]


def test_a_vanished_folder_is_an_error_and_not_a_new_cache(place: Place) -> None:
    cache = cache_at(place.root)
    with pytest.raises(RunError, match="removed"), cache.writer() as writer:  # noqa: PT012
        writer.add(row(1, [-1.0], [1], True))
        cache.remove()
    assert place.files() == {}


def test_a_path_without_write_access_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        ReferenceCache.open(tmp_path / "file" / "cache", "base").create_or_check(FINGERPRINT)
    (tmp_path / "cache").mkdir()
    cache = ReferenceCache.open(tmp_path / "cache", "base")
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").symlink_to(tmp_path / "cache")
    with pytest.raises(UserError, match="symbolic links"):
        cache.create_or_check(FINGERPRINT)


def test_leftovers_of_dead_processes_and_old_ones_are_removed(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    shards = tmp_path / "base" / "shards"
    shards.mkdir()
    machine = temporary_name().partition("-")[0]
    names = {
        "dead": f"{machine}-{dead.pid}-00.partial",
        "living": f"{machine}-{os.getpid()}-00.partial",
        "elsewhere": f"{'0' * 12}-{dead.pid}-00.partial",
        "old": f"{'0' * 12}-{dead.pid}-01.partial",
        "strange": "what.partial",
    }
    for name in names.values():
        (shards / name).write_bytes(b"half")
    yesterday = time.time() - ABANDONED_SECONDS - 60
    for old in ("old", "living"):  # even if the clock jumps, a running process's file is not a leftover
        os.utime(shards / names[old], (yesterday, yesterday))
    with cache.writer():
        pass
    assert {path.name for path in shards.iterdir()} == {names["living"], names["elsewhere"], names["strange"]}


def test_a_shard_is_named_by_its_content(place: Place) -> None:
    cache = cache_at(place.root)
    one = row(1, -np.arange(5.0), np.arange(5), True)
    assert write(cache, [one]) == write(cache, [one])
    assert len(place.names("base/shards/")) == 1


def test_a_file_is_renamed_after_it_is_flushed_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    events: list[str] = []
    sync, replace = os.fsync, os.replace

    def watched_sync(descriptor: int) -> None:
        events.append("folder flushed" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file flushed")
        sync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        assert Path(source).read_bytes() == b"whole"
        assert not list(tmp_path.rglob("*.parquet"))
        events.append("renamed")
        replace(source, target)

    (tmp_path / "shards").mkdir()
    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_replace)
    storage.put("shards", b"whole")
    if sys.platform == "linux":
        assert events == ["file flushed", "renamed", "folder flushed"]


def test_a_shard_does_not_recreate_a_vanished_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalStorage(tmp_path / "gone").put("shards", b"whole")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_removed_before_the_writer_opens_is_an_error(place: Place) -> None:
    cache = cache_at(place.root)
    ReferenceCache.open(place.root, "base").remove()
    with pytest.raises(RunError, match="removed during this run"):
        cache.writer()
