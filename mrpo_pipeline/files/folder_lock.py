"""A lock on an output folder: one command at a time.

A system lock (flock) on a file in the folder that names its holder; it ends with the process. On a file system without locks the
content of the file decides. A folder that can't be written to needs no lock.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.files.atomic import is_alive, machine_tag

LOCK = ".mrpo-lock"

# Locks of this process by path: the thread that holds it, and the open file.
_held: dict[str, tuple[int, int]] = {}


def _forget_in_fork() -> None:
    """A fork shares the open files and must not prolong a lock."""
    for _, descriptor in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_fork)


@contextmanager
def held(folder: str | Path, command: str, *, within: bool = False) -> Iterator[None]:
    """Hold the lock of a folder during the block; reentrant within a thread.

    Args:
        command: named to others, such as ``mrpo train``.
        within: a parent folder is held by the command that started this process.

    Raises:
        RunError: where another command holds the folder or a parent of it.
    """
    place = Path(os.path.realpath(folder))
    with ExitStack() as stack:
        for above in () if within else place.parents:
            if (above / LOCK).is_file():
                stack.enter_context(_taken(above / LOCK, above, command, shared=True))
        stack.enter_context(_taken(place / LOCK, place, command))
        yield


@contextmanager
def _taken(path: Path, folder: Path, command: str, *, shared: bool = False) -> Iterator[None]:
    thread, _ = _held.get(str(path), (0, 0))
    if thread == threading.get_ident():
        yield
        return
    made = [] if shared else _make(path.parent)
    descriptor = _open(path, folder, shared=shared)
    if descriptor is None:
        yield
        return
    try:
        if not shared:
            _held[str(path)] = (threading.get_ident(), descriptor)
            _write(descriptor, command)
        yield
    finally:
        if not shared:
            _held.pop(str(path), None)
            with suppress(OSError):
                path.unlink()
        os.close(descriptor)
        for empty in made:  # of a command without output
            with suppress(OSError):
                empty.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder; the new folders, innermost first."""
    missing = []
    for one in (folder, *folder.parents):
        if one.exists():
            break
        missing.append(one)
    with suppress(OSError):  # the command reports it when it writes
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _open(path: Path, folder: Path, *, shared: bool) -> int | None:
    """The open, locked file; None where the folder can't be written to."""
    while True:
        try:
            flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
            descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            if error.errno == errno.ENOENT and path.parent.is_dir() and not shared:
                continue
            return None
        try:
            _lock(descriptor, folder, shared=shared)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:  # its holder has ended and removed the file
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, *, shared: bool) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(folder, _owner(descriptor)) from None
    except (ImportError, OSError):  # no flock here
        owner = _owner(descriptor)
        here = owner.get("machine") == machine_tag()
        if owner and not (here and not _alive(owner)):
            way_out = "" if here else f" If that process has ended, delete {folder / LOCK}."
            raise _in_use(folder, owner, way_out) from None


def _in_use(folder: Path, owner: dict[str, Any], way_out: str = "") -> RunError:
    who = "another command"
    if owner and not (owner.get("machine") == machine_tag() and not _alive(owner)):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.get("since") or 0))
        who = f"{owner.get('command')} (process {owner.get('pid')} on {owner.get('host')}, since {since})"
    return RunError(
        f"{folder} is in use by {who}. Nothing was changed. Wait until it ends, or use another folder (--output-dir).{way_out}"
    )


def _alive(owner: dict[str, Any]) -> bool:
    pid = owner.get("pid")
    return isinstance(pid, int) and is_alive(pid)


def _owner(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(descriptor: int, command: str) -> None:
    owner = {
        "command": command,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "machine": machine_tag(),
        "since": time.time(),
    }
    with suppress(OSError):  # the lock holds on a full disk too
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
