"""Files that are whole under their own name, whatever kills the process or fills the disk.

A file is written to a temporary name beside its own, flushed to the disk, renamed, and its folder flushed. A process that
dies leaves the temporary file; the next that writes there knows it as a leftover and removes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

PARTIAL = ".partial"

# Writing a file takes seconds: a temporary file this old has been left behind, whoever made it.
ABANDONED_SECONDS = 24 * 3600.0


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends well, the file stands under its own name.

    The folder is made where it is not there yet.

    Raises:
        OSError: where the disk refuses (full, read-only, gone); what stood under the name before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, f".{path.name}-")
    temporary = path.with_name(f".{path.name}-{temporary_name()}")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder of the same name to fill; when the block ends well, it takes its place.

    Nothing is left of it otherwise, nor of folders above it that were made for it.

    Raises:
        OSError: where the disk refuses, or there is something else under the name than an empty folder: it stays as it is.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, f".{path.name}-")
    outer = path.with_name(f".{path.name}-{temporary_name()}")
    inner = outer / path.name
    done = False
    try:
        inner.mkdir(parents=True)
        yield inner
        for file in sorted(inner.rglob("*")):
            sync_folder(file) if file.is_dir() else sync_file(file)
        if path.is_dir():
            path.rmdir()
        os.rename(inner, path)
        done = True
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        for folder in [] if done else made:
            with suppress(OSError):
                folder.rmdir()
    sync_folder(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all. Raises OSError as ``whole_file`` does."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_whole_json(path: Path, document: Any) -> None:
    """Write a document as JSON, whole or not at all; numbers of other libraries as floats. Raises OSError."""
    write_whole(path, json.dumps(document, indent=1, ensure_ascii=False, default=float))


def temporary_name() -> str:
    """A name that no other file has and that tells which process of which machine made it."""
    return f"{machine_tag()}-{os.getpid()}-{secrets.token_hex(8)}{PARTIAL}"


def remove_leftovers(folder: Path, prefix: str = "") -> int:
    """Remove the temporary files and folders of dead processes, and of other machines' those too old to belong to anyone.

    Those of this machine's living processes stay whatever their age: clocks jump. Where one may not be removed it stays, too.

    Args:
        prefix: what stands before ``temporary_name`` in the names looked at.

    Returns:
        the number removed.
    """
    removed = 0
    for path in folder.iterdir():
        if not (path.name.startswith(prefix) and path.name.endswith(PARTIAL)):
            continue
        tag, _, rest = path.name.removeprefix(prefix).partition("-")
        pid = rest.partition("-")[0]
        with suppress(OSError):
            if tag == machine_tag() and pid.isdigit():
                abandoned = not is_alive(int(pid))
            else:
                abandoned = time.time() - path.stat().st_mtime > ABANDONED_SECONDS
            if abandoned:
                if path.is_dir():
                    remove_folder(path)
                else:
                    path.unlink()
                removed += 1
    return removed


@contextmanager
def temporary_folder(folder: Path, prefix: str) -> Iterator[Path]:
    """A folder in a folder, for as long as the block runs; one that is left behind is known to ``remove_leftovers``."""
    made = folder / f"{prefix}{temporary_name()}"
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        remove_folder(made, ignore_errors=True)


def remove_folder(folder: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder with all that lies in it. Of a link the link alone goes, and what it points to stays.

    Raises:
        OSError: where something can't be removed, unless ``ignore_errors``.
    """
    try:
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            shutil.rmtree(folder, ignore_errors=ignore_errors)
    except OSError:
        if not ignore_errors:
            raise


def sync_file(path: Path) -> None:
    """Flush what was written to a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: a rename in it is there after a power cut."""
    if os.name == "nt":  # a folder cannot be opened there, and renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def machine_tag() -> str:
    """Tells apart the places in which a process id means something: host, boot and process namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux has these two, other systems go by the host's name
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
