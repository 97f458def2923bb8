"""Atomic writes: a file or folder is complete under its name, or absent.

It is written to a temporary name beside its own, flushed to disk, renamed, and its folder flushed. A killed process leaves the
temporary file; the next writer in that folder removes it.
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

# Writing takes seconds: a temporary file of this age is abandoned, whoever made it.
ABANDONED_SECONDS = 24 * 3600.0


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on success it is renamed to ``path``. Makes the folder.

    Raises:
        OSError: full, read-only or missing disk; the previous file stays.
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
    """A temporary folder of the same name to fill; on success it is renamed to ``path``.

    On failure it is removed, with the parent folders that were made for it.

    Raises:
        OSError: as ``whole_file``, and if ``path`` exists and is not an empty folder.
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
    """Write a text in UTF-8 atomically. Raises OSError: see ``whole_file``."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_whole_json(path: Path, document: Any) -> None:
    """Write JSON atomically; numbers of other libraries become floats. Raises OSError: see ``whole_file``."""
    write_whole(path, json.dumps(document, indent=1, ensure_ascii=False, default=float))


def temporary_name() -> str:
    """A unique name that contains the machine and process that made it."""
    return f"{machine_tag()}-{os.getpid()}-{secrets.token_hex(8)}{PARTIAL}"


def remove_leftovers(folder: Path, prefix: str = "") -> int:
    """Remove temporary files and folders of dead processes, and old ones of other machines; returns their number.

    Those of live processes on this machine stay at any age, because clocks jump. Those that can't be removed stay too.

    Args:
        prefix: of the names, before ``temporary_name``.
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
    """A temporary folder that is removed after the block, or by ``remove_leftovers`` if the process dies."""
    made = folder / f"{prefix}{temporary_name()}"
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        remove_folder(made, ignore_errors=True)


def remove_folder(folder: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder and its content; of a symlink only the link. Raises OSError, unless ``ignore_errors``."""
    try:
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            shutil.rmtree(folder, ignore_errors=ignore_errors)
    except OSError:
        if not ignore_errors:
            raise


def sync_file(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut."""
    if os.name == "nt":  # folders can't be opened there, and renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def machine_tag() -> str:
    """Identifies host, boot and process namespace: the scope in which a process id is unique."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux only; other systems have the host name
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
