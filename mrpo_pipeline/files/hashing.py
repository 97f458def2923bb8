"""SHA-256 of files, cached by path, size and times, so that model weights are not hashed in every run."""

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

# A file changed this recently can change again with the same times: its hash is not cached.
SETTLED_NS = 2_000_000_000

_BLOCK = 1 << 22


def mrpo_home() -> Path:
    """The folder of mrpo's own caches: ``$MRPO_HOME``, else ``mrpo`` in the user's cache folder."""
    home = os.environ.get("MRPO_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mrpo"


def sha256_of_small(path: Path) -> str:
    """SHA-256 of a small file, 64 hex digits, not cached. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, 64 hex digits.

    Cached in ``content.json`` in ``mrpo_home()`` by size, modification time, change time and inode. Programs can't set the change time,
    so an edit with restored times and a replaced file are noticed. (On a file system in memory, writes through a memory map do not
    change the times: touch the file after them.) Processes may run this at once: a lost entry is only hashed again.

    Raises:
        OSError: for a file that can't be read.
    """
    memo = _load()
    real = [os.path.realpath(path) for path in paths]
    fresh = sorted({path for path in real if memo.get(path, ["", ""])[0] != _state(path)})
    # Hashing releases the GIL, and large models have several files.
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
    """The file's state (None where it must not be cached) and its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        # Further writes to a dirty page of a memory map do not change the times until it is flushed.
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
    """Replace the cache file; if that fails the next run hashes again."""
    present = {path: entry for path, entry in memo.items() if os.path.exists(path)}
    with suppress(OSError):
        # ASCII: a path may have bytes that are not UTF-8.
        write_whole(mrpo_home() / "content.json", json.dumps(present, indent=0))
