"""Disk errors are recognized in every library's form, and other errors are not taken for them."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.files.disk_errors import disk_error, explain_disk_errors

FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, FULL), FULL),
        (OSError(errno.EROFS, "Read-only file system", "/out/x"), "Read-only file system: /out/x"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (RuntimeError("something else (os error 999)"), None),
        (RuntimeError("shapes do not fit"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/x"), None),
        (ValueError("No space left on device"), None),
    ],
)
def test_the_reason_is_found(tmp_path: Path, error: Exception, told: str | None) -> None:
    assert disk_error(error, tmp_path) == told


def test_a_missing_file_of_the_folder_is_a_disk_error(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "a" / "b"))
    assert "No such file" in str(disk_error(error, tmp_path))


def test_the_cause_is_searched(tmp_path: Path) -> None:
    outer = RuntimeError("saving failed")
    outer.__cause__ = OSError(errno.ENOSPC, FULL)
    assert disk_error(outer, tmp_path) == FULL


@pytest.mark.parametrize("said", ["[enforce fail at inline_container.cc:672]", "basic_ios::clear: iostream error"])
def test_a_short_file_of_torch_is_a_disk_error_only_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    error = RuntimeError(said)
    assert shutil.disk_usage(tmp_path).free > 1 << 20, "this test needs some room"
    assert disk_error(error, tmp_path) is None
    found = namedtuple("found", ["f_bavail", "f_frsize"])
    monkeypatch.setattr(os, "statvfs", lambda path: found(3, 4096))
    assert disk_error(error, tmp_path / "not" / "made") == FULL


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    for error in (UserError("x"), RunError("y"), KeyError("z")):
        with pytest.raises(type(error)) as caught, explain_disk_errors(tmp_path, "It failed", "Again."):
            raise error
        assert caught.value is error
    with (
        pytest.raises(RunError, match=r"It failed \(No space left on device\).* Again\."),
        explain_disk_errors(tmp_path, "It failed", "Again."),
    ):
        raise OSError(errno.ENOSPC, FULL)
