"""One command at a time in an output folder, with real processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.files import folder_lock
from mrpo_pipeline.files.folder_lock import LOCK, held

HOLD = """
import os, sys, time
from mrpo_pipeline.files.folder_lock import held
with held(sys.argv[1], "mrpo train"):
    if len(sys.argv) > 2:
        started, start = os.pipe()
        if os.fork() == 0:
            os.write(start, b"x")
            os.close(1)
            time.sleep(20)
            os._exit(0)
        os.read(started, 1)
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Start processes that hold a folder."""
    started = []

    def hold(folder: Path, *more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *more], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_command_is_refused_with_the_holder_until_that_ends_or_is_killed(tmp_path: Path, holder) -> None:
    out = tmp_path / "out"
    for ending in (signal.SIGTERM, signal.SIGKILL):
        process = holder(out)
        with (
            pytest.raises(RunError, match=rf"mrpo train \(process {process.pid} on .*since 20"),
            held(out, "mrpo train"),
        ):
            pass
        with pytest.raises(RunError, match="in use"), held(tmp_path / "here" / ".." / "out", "mrpo report"):
            pass
        process.send_signal(ending)
        process.wait()
        with held(out, "mrpo train"):
            assert (out / LOCK).is_file()


def test_a_fork_does_not_hold_the_lock(tmp_path: Path, holder) -> None:
    process = holder(tmp_path / "out", "fork")
    process.kill()
    process.wait()
    with held(tmp_path / "out", "mrpo train"):
        pass


def test_a_subfolder_of_a_held_folder_is_only_for_its_own_processes(tmp_path: Path, holder) -> None:
    holder(tmp_path / "comparison")
    run = tmp_path / "comparison" / "dpo" / "seed-0"
    with pytest.raises(RunError, match="comparison is in use"), held(run, "mrpo train"):
        pass
    with held(run, "mrpo compare", within=True), held(tmp_path / "another", "mrpo train"):
        pass


def test_the_lock_is_reentrant_and_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "not" / "there"
    with held(out, "mrpo compare"), held(out, "mrpo report"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_file_system_locks_the_content_decides(
    tmp_path: Path, holder, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    process = holder(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError, match=f"process {process.pid}"), held(tmp_path, "mrpo train"):
        pass
    process.kill()
    process.wait()
    with held(tmp_path, "mrpo train"):
        owner = json.loads((tmp_path / LOCK).read_text())
        assert owner["pid"] == os.getpid()
    elsewhere = {**owner, "machine": "another", "host": "another.host"}
    (tmp_path / LOCK).write_text(json.dumps(elsewhere))
    with (
        pytest.raises(RunError, match=r"on another\.host.*If that process has ended, delete"),
        held(tmp_path, "mrpo train"),
    ):
        pass


def test_a_folder_that_cannot_be_written_to_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def read_only(path: object, flags: int, *rest: object, **more: object) -> int:
        if str(path).endswith(LOCK):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(folder_lock.os, "open", read_only)
    with held(tmp_path, "mrpo evaluate"):
        pass


def test_the_lock_file_is_not_followed_as_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(other)
    with held(tmp_path / "out", "mrpo train"):
        pass
    assert other.read_text() == "kept"


def test_commands_refuse_a_folder_in_use_with_a_paragraph_and_change_nothing(tmp_path: Path, holder) -> None:
    out = tmp_path / "out"
    process = holder(out)
    (out / "kept").write_text("kept")
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    document = {
        "pairs": {"train": "pairs.jsonl", "eval": "pairs.jsonl"},
        "policy": {"model": "model"},
        "references": {"base": {"model": "model"}, "other": {"model": "other"}},
        "cache": "cache",
        "output_dir": "out",
    }
    recipe.write_text(yaml.safe_dump(document))
    before = sorted(path.name for path in out.iterdir())
    began = time.monotonic()
    for command in ("train", "compare"):
        run = [sys.executable, "-P", "-c", "from mrpo_cli.main import main; main()", command, "recipe.yaml"]
        done = subprocess.run(run, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert f"process {process.pid}" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - began < 120
    assert sorted(path.name for path in out.iterdir()) == before
