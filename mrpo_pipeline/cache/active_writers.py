"""Who is scoring into a cache just now, so that several runs at once can share the work.

A run leaves an empty file in the reference's folder ``scoring``, named as temporary files are: it tells machine and process,
and the file of one that died is known for a leftover. On an object store nobody is seen; there each run works for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.cache.storage import Storage
from mrpo_pipeline.files.atomic import PARTIAL, remove_leftovers, temporary_name

AT_WORK = "scoring"


@dataclass(frozen=True)
class Other:
    """Another run that scores into the same cache: its name for a person, and whether it was there before."""

    name: str
    came_first: bool


Others = Callable[[], list[Other]]


@contextmanager
def at_work(storage: Storage) -> Iterator[Others]:
    """Be seen by other runs that score into the same cache, and see them. What cannot be written hinders nobody."""
    if not isinstance(storage, LocalStorage):
        yield list
        return
    folder = storage.root / AT_WORK
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
        paths = [path for _, path in came]
        before = paths[: paths.index(mine)] if mine in paths else paths
        return [Other(_name(path, mine), path in before) for path in paths if path != mine]

    try:
        yield others
    finally:
        with suppress(OSError):
            mine.unlink(missing_ok=True)
            folder.rmdir()


def _name(path: Path, mine: Path) -> str:
    machine, _, rest = path.name.partition("-")
    pid = rest.partition("-")[0]
    return f"process {pid}" if machine == mine.name.partition("-")[0] else f"process {pid} of another machine"
