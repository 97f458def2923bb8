"""The runs that currently score into a cache, so that they can share the work.

A run keeps an empty file in the reference's folder ``scoring``. In a local folder its name contains machine and process, like the name
of a temporary file, so files of dead runs are removed as leftovers. In an object store the run rewrites its file regularly; a file that
was not rewritten for some time, by the store's clock, belongs to a dead run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.cache.object_storage import ObjectStorage
from mrpo_pipeline.cache.storage import Storage, StoreError
from mrpo_pipeline.files.atomic import PARTIAL, machine_tag, remove_leftovers, temporary_name

ACTIVE = "scoring"

# Seconds between two writes of a run's file in an object store; and seconds without a write after which the run counts as dead.
REFRESH_SECONDS = 30.0
DEAD_SECONDS = 150.0


@dataclass(frozen=True)
class Other:
    """Another run that scores into the same cache: a readable name, and whether it started earlier."""

    name: str
    came_first: bool


Others = Callable[[], list[Other]]


def register_run(storage: Storage) -> AbstractContextManager[Others]:
    """Register this run during the block; gives a function that lists the others. Write errors are ignored."""
    if isinstance(storage, LocalStorage):
        return _in_folder(storage.root / ACTIVE)
    if isinstance(storage, ObjectStorage):
        return _in_store(storage)
    return nullcontext(list)


@contextmanager
def _in_folder(folder: Path) -> Iterator[Others]:
    mine = folder / temporary_name()
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        mine.touch()

    def others() -> list[Other]:
        try:
            remove_leftovers(folder)
            came = sorted((path.stat().st_mtime_ns, path) for path in folder.iterdir() if path.name.endswith(PARTIAL))
        except OSError:
            return []
        return _others([path.name for _, path in came], mine.name)

    try:
        yield others
    finally:
        with suppress(OSError):
            mine.unlink(missing_ok=True)
            folder.rmdir()


@contextmanager
def _in_store(storage: ObjectStorage) -> Iterator[Others]:
    """A file's name begins with the time of its first write, by the store's clock, so that all runs see the same order."""
    mine = ""
    with suppress(StoreError):
        mine = _announce(storage)
    if not mine:  # a read-only store, or one without write times
        yield list
        return

    def others() -> list[Other]:
        try:
            storage.write(mine, b"")  # its time is the store's time now
            written = storage.modified(ACTIVE)
            alive = [name for name in written if written[mine] - written[name] < timedelta(seconds=DEAD_SECONDS)]
            for name in written.keys() - alive:
                storage.delete(name)
        except (StoreError, KeyError):
            return []
        announced = sorted(name.partition("/")[2] for name in alive if name.count("-") == mine.count("-"))
        return _others(announced, mine.partition("/")[2])

    ended = Event()
    refreshing = Thread(target=_refresh, args=(storage, mine, ended), daemon=True)
    refreshing.start()
    try:
        yield others
    finally:
        ended.set()
        refreshing.join()
        with suppress(StoreError):
            storage.delete(mine)


def _announce(storage: ObjectStorage) -> str:
    """Write this run's file; returns its name, or "" if the store gives no times."""
    asking = f"{ACTIVE}/{temporary_name()}"
    storage.write(asking, b"")
    now = storage.modified(ACTIVE).get(asking)
    storage.delete(asking)
    if now is None:
        return ""
    mine = f"{ACTIVE}/{now.timestamp():018.6f}-{temporary_name()}"
    storage.write(mine, b"")
    return mine


def _refresh(storage: ObjectStorage, mine: str, ended: Event) -> None:
    while not ended.wait(REFRESH_SECONDS):
        with suppress(StoreError):
            storage.write(mine, b"")


def _others(names: list[str], mine: str) -> list[Other]:
    """The other runs, from the names of all runs in the order in which they started."""
    before = names[: names.index(mine)] if mine in names else names
    return [Other(_readable(name), name in before) for name in names if name != mine]


def _readable(name: str) -> str:
    machine, pid = name.removesuffix(PARTIAL).split("-")[-3:-1]
    return f"process {pid}" if machine == machine_tag() else f"process {pid} of another machine"
