"""SHA-256 of files, remembered by path, size and times, so that a model's weights are read once and not at every run."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from mrpo_pipeline.files.atomic import write_whole

# A file changed this recently can change again without its times telling: it is hashed, and not remembered.
SETTLED_NS = 2_000_000_000

_BLOCK = 1 << 22


def mrpo_home() -> Path:
    """Where mrpo keeps what it can make again: ``$MRPO_HOME``, else ``mrpo`` in the user's cache folder."""
    home = os.environ.get("MRPO_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mrpo"


def sha256_of_small(path: Path) -> str:
    """SHA-256 of a file that is read at once, 64 hex digits; nothing is remembered of it. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, 64 hex digits.

    Known ones come from ``content.json`` in ``mrpo_home()``, as long as the file's size, modification and change time and inode
    are those of then: no program can set the change time back, so neither an edit with its times restored nor a file put in
    the place of another is missed. (On a file system in memory, writes through a memory map move no times: what a model's
    weights are edited through there must be closed and the file touched.) Processes may do this at once: an entry that
    another overwrites is hashed again later, nothing more.

    Raises:
        OSError: where a file cannot be read.
    """
    memo = _load()
    real = [os.path.realpath(path) for path in paths]
    fresh = sorted({path for path in real if memo.get(path, ["", ""])[0] != _state(path)})
    # Hashing leaves the interpreter free, and large weights come in several files.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        hashed = dict(zip(fresh, pool.map(_hash, fresh), strict=True))
    settled = {path: [state, digest] for path, (state, digest) in hashed.items() if state is not None}
    if settled:
        _save({**_load(), **settled})
    return [hashed[path][1] if path in hashed else memo[path][1] for path in real]


def _state(path: str) -> str:
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _hash(path: str) -> tuple[str | None, str]:
    """The file's state, None where it may not be remembered, and its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        # A page that was written through a memory map takes more writes without the times telling, until it is on disk.
        with suppress(OSError):
            os.fsync(file.fileno())
        before = _state(path)
        while block := file.read(_BLOCK):
            digest.update(block)
    found = os.stat(path)
    youngest = max(found.st_mtime_ns, found.st_ctime_ns)
    settled = _state(path) == before and time.time_ns() - youngest > SETTLED_NS
    return (before if settled else None), digest.hexdigest()


def _load() -> dict[str, list[str]]:
    try:
        memo = json.loads((mrpo_home() / "content.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(memo, dict):
        return {}
    return {
        path: entry
        for path, entry in memo.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
    }


def _save(memo: dict[str, list[str]]) -> None:
    """Replace the memo whole; where it cannot be written the next run hashes again."""
    present = {path: entry for path, entry in memo.items() if os.path.exists(path)}
    with suppress(OSError):
        # All in ASCII: a path may hold bytes that are no UTF-8.
        write_whole(mrpo_home() / "content.json", json.dumps(present, indent=0))
