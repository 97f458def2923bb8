"""Maintenance of a cache: verify, prune."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mrpo_pipeline.cache.active_writers import ACTIVE
from mrpo_pipeline.cache.coverage import Coverage, best_rows
from mrpo_pipeline.cache.coverage_index import INDEX, index_prefix
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.sequence_logps import SUMS, is_sound, load_sums, shards_key
from mrpo_pipeline.cache.shards import SHARDS, DamagedError, read_checked, read_rows
from mrpo_pipeline.cache.span_logps import SPANS
from mrpo_pipeline.cache.storage import Storage
from mrpo_pipeline.cache.unscorable import UNFIT

# Folders in which a killed process may leave temporary files.
TEMPORARY_FOLDERS = (".", SHARDS, SUMS, SPANS, INDEX, UNFIT, ACTIVE)


@dataclass(frozen=True)
class ShardReport:
    """The verification of one file, a shard or a record of unscorable completions; ``problem`` is None if it is intact.

    ``unread``: the system did not allow reading it, so its state is unknown and nothing can be repaired.
    """

    name: str
    size: int
    rows: int = 0
    tokens: int = 0
    problem: str | None = None
    unread: bool = False


@dataclass(frozen=True)
class Pruned:
    """Files and bytes that ``prune`` removed."""

    leftovers: int
    sums: int
    shards: int
    size: int


def verify_shards(storage: Storage, manifest: Manifest | None) -> Iterator[ShardReport]:
    """Verify checksum, origin and rows of every shard, and the checksum of every record of unscorable completions.

    A damaged file does not stop the verification; one that another process removed meanwhile is skipped.
    """

    def verify(name: str) -> ShardReport | None:
        size = rows = tokens = 0
        try:
            data = read_checked(storage, name)
            size = data.size
            for group in read_rows(storage, name, data, manifest) if name.startswith(f"{SHARDS}/") else ():
                rows += len(group)
                tokens += len(group.token_ids)
        except FileNotFoundError:
            return None
        except OSError as error:
            return ShardReport(name, 0, problem=f"it can't be read ({error.strerror or error})", unread=True)
        except DamagedError as error:
            return ShardReport(name, size, rows, tokens, error.problem)
        return ShardReport(name, size, rows, tokens)

    with ThreadPoolExecutor(storage.at_once) as pool:
        names = [*storage.list(SHARDS), *storage.list(UNFIT)]
        yield from (report for report in pool.map(verify, names) if report is not None)


def prune_cache(storage: Storage, coverage: Coverage, manifest: Manifest | None) -> Pruned:
    """Remove leftovers of dead processes, outdated or damaged sums and spans, and shards all of whose rows other shards supersede.

    Damaged shards neither supersede others nor are removed: ``verify`` reports them.
    """
    leftovers = sum(storage.clear_leftovers(folder) for folder in TEMPORARY_FOLDERS)
    sound = [
        report.name
        for report in verify_shards(storage, manifest)
        if report.problem is None and report.name.startswith(f"{SHARDS}/")
    ]
    serving = best_rows(coverage.rows(sound))["shard"].unique()
    superseded = sorted(set(sound) - set(serving.to_list()))
    left = [name for name in storage.list(SHARDS) if name not in superseded]
    current = f"{shards_key(left, manifest)}-"
    stale = [
        *_stale(storage, SUMS, current, lambda name: load_sums(storage, name) is not None),
        *_stale(storage, SPANS, current, lambda name: is_sound(storage, SPANS, name)),
        *_stale(storage, INDEX, index_prefix(manifest), lambda name: is_sound(storage, INDEX, name)),
    ]
    size = 0
    for name in superseded + stale:
        size += storage.size(name)
        storage.delete(name)
    return Pruned(leftovers, len(stale), len(superseded), size)


def _stale(storage: Storage, folder: str, current: str, sound: Callable[[str], bool]) -> list[str]:
    """The derived files of a folder that belong to other shards, or are damaged."""
    names = [path.removeprefix(f"{folder}/") for path in storage.list(folder)]
    return [f"{folder}/{name}" for name in names if not name.startswith(current) or not sound(name)]
