"""Disk errors while results are written, from whichever library raised them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrpo_pipeline.errors import RunError, UserError

# Full, over quota, read-only, broken or missing disk.
_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.EFBIG,
    errno.ENODEV,
    errno.ENXIO,
}
# Disk errors only for a file in the output folder.
_FILE_ERRORS = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}

# Rust libraries (safetensors, tokenizers, polars) put the number into the message.
_NUMBER = re.compile(r"\(os error (\d+)\)")
# torch.save only reports that the file is shorter than what was written.
_CUT_SHORT = ("inline_container", "PytorchStreamWriter", "iostream error")
_FULL_BYTES = 1 << 20


def disk_error(error: BaseException, folder: str | Path | None = None) -> str | None:
    """The system's message for a disk error, with the file if it is known; None for any other error.

    Args:
        folder: the output folder: its files may be missing or not writable, and its disk full although the error does not tell.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        match = _NUMBER.search(str(seen))
        if number is None and match:
            number = int(match[1])
        name = seen.filename if isinstance(seen, OSError) else None
        if number in _DISK_ERRORS or (number in _FILE_ERRORS and _within(name, folder)):
            assert number is not None
            return os.strerror(number) + (f": {name}" if isinstance(name, str | Path) else "")
        if folder is not None and any(mark in str(seen) for mark in _CUT_SHORT) and _is_full(Path(folder)):
            return os.strerror(errno.ENOSPC)
        seen = seen.__cause__
    return None


@contextmanager
def explain_disk_errors(folder: str | Path, what: str, go_on: str) -> Iterator[None]:
    """Turn a disk error in the block into a RunError of one paragraph.

    Args:
        folder: the output folder. what: what failed. go_on: what is kept, and how to continue.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        reason = disk_error(error, folder)
        if reason is None:
            raise
        raise RunError(f"{what} ({reason}). Free some space or give write access. {go_on}") from error


def _within(name: object, folder: str | Path | None) -> bool:
    if folder is None or not isinstance(name, str | Path):
        return False
    return Path(os.path.abspath(name)).is_relative_to(os.path.abspath(folder))


def _is_full(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = os.statvfs(folder)
    except (OSError, AttributeError):  # not on every system
        return False
    return found.f_bavail * found.f_frsize < _FULL_BYTES
