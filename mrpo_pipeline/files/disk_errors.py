"""What a disk refuses while results are written, in words: whichever library met it, and however it says so."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrpo_pipeline.errors import RunError, UserError

# Full, over quota, read-only, broken, gone: nothing that a program has done wrong.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG, errno.ENODEV, errno.ENXIO}
# These are a disk's word only where they befall what is written.
_OF_A_FILE = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}

# Libraries in Rust (safetensors, tokenizers, polars) put the number into their text.
_NUMBER = re.compile(r"\(os error (\d+)\)")
# torch.save has no word for the reason: a file came out shorter than what was written to it.
_CUT_SHORT = ("inline_container", "PytorchStreamWriter", "iostream error")
_FULL_BYTES = 1 << 20


def refusal(error: BaseException, folder: str | Path | None = None) -> str | None:
    """Why the disk refused, as the system says it, with the file where that is known; None for any other error.

    Args:
        folder: where is written to: a full disk is known by it where the error does not tell, and a file of it that is gone
            or may not be written.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        said = _NUMBER.search(str(seen))
        if number is None and said:
            number = int(said[1])
        name = seen.filename if isinstance(seen, OSError) else None
        if number in _REFUSALS or (number in _OF_A_FILE and _within(name, folder)):
            assert number is not None
            return os.strerror(number) + (f": {name}" if isinstance(name, str | Path) else "")
        if folder is not None and any(mark in str(seen) for mark in _CUT_SHORT) and _is_full(Path(folder)):
            return os.strerror(errno.ENOSPC)
        seen = seen.__cause__
    return None


@contextmanager
def telling(folder: str | Path, what: str, go_on: str) -> Iterator[None]:
    """Whatever the disk refuses meanwhile is told in one paragraph.

    Args:
        folder: where is written to. what: what could not be done. go_on: what is kept, and what to do once there is room.

    Raises:
        RunError: in place of the library's error.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        reason = refusal(error, folder)
        if reason is None:
            raise
        raise RunError(f"{what} ({reason}): expected a disk with room that can be written to. {go_on}") from error


def _within(name: object, folder: str | Path | None) -> bool:
    if folder is None or not isinstance(name, str | Path):
        return False
    return Path(os.path.abspath(name)).is_relative_to(os.path.abspath(folder))


def _is_full(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = os.statvfs(folder)
    except (OSError, AttributeError):  # a system without it
        return False
    return found.f_bavail * found.f_frsize < _FULL_BYTES
