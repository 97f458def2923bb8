"""Looking after a cache: is every shard what was written, what is in it, what can go."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.cache.active_writers import AT_WORK
from mrpo_pipeline.cache.coverage import Coverage, best_rows
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.sequence_logps import SUMS, load_sums, shards_key
from mrpo_pipeline.cache.shards import SHARDS, DamagedError, read_checked, read_rows
from mrpo_pipeline.cache.storage import Storage
from mrpo_pipeline.cache.unscorable import UNFIT

# What processes that died may have left something half written in: the reference's own folder, and those below it.
WRITTEN_TO = (".", SHARDS, SUMS, UNFIT, AT_WORK)


@dataclass(frozen=True)
class ShardReport:
    """One shard, or record of what does not fit, as ``verify`` found it; ``problem`` is None where it is sound.

    ``unread`` where the system did not let it be read: nothing tells whether it is sound, and there is nothing to repair.
    """

    name: str
    size: int
    rows: int = 0
    tokens: int = 0
    problem: str | None = None
    unread: bool = False


@dataclass(frozen=True)
class CacheStats:
    """What a reference's cache holds.

    ``rows`` counts what the shards hold, ``completions`` what they serve (each once), ``complete`` those of them that were
    scored whole, ``tokens`` the served completions' tokens, ``nats_per_token`` their mean negative log-prob.
    """

    shards: int
    size: int
    rows: int
    completions: int
    complete: int
    tokens: int
    nats_per_token: float
    unfit: int


@dataclass(frozen=True)
class Pruned:
    """What ``prune`` removed: numbers of files, and bytes."""

    leftovers: int
    sums: int
    shards: int
    size: int


def verify_shards(storage: Storage, manifest: Manifest | None) -> Iterator[ShardReport]:
    """Re-read every shard: its checksum, its origin, and what its rows must be. No shard stops the others from being looked
    at.

    The records of what does not fit a reference's context are files like shards, and looked at too. A file that another
    process removed meanwhile is passed over.
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
            return ShardReport(name, 0, problem=f"it cannot be read ({error.strerror or error})", unread=True)
        except DamagedError as error:
            return ShardReport(name, size, rows, tokens, error.problem)
        return ShardReport(name, size, rows, tokens)

    with ThreadPoolExecutor(storage.at_once) as pool:
        names = [*storage.list(SHARDS), *storage.list(UNFIT)]
        yield from (report for report in pool.map(verify, names) if report is not None)


def cache_stats(storage: Storage, coverage: Coverage, unfit: int) -> CacheStats:
    """Count what is there, from verified shards.

    Raises:
        DamagedError: for a shard that is not what was written.
    """
    every = coverage.rows()
    best = best_rows(every)
    names = storage.list(SHARDS)

    def count(job: tuple[str, npt.NDArray[np.int64]]) -> tuple[int, float]:
        """Tokens and nats of one shard's rows that serve."""
        name, served = job
        tokens, nats = 0, 0.0
        for group in read_rows(storage, name, read_checked(storage, name)):
            low, high = np.searchsorted(served, [group.first, group.first + len(group)])
            places = served[low:high] - group.first
            sums = np.add.reduceat(group.logprobs.astype(np.float64), group.offsets[:-1])
            nats -= float(sums[places].sum())
            tokens += int(np.diff(group.offsets)[places].sum())
        return tokens, nats

    jobs = [(str(name), part["row"].sort().to_numpy()) for (name,), part in best.group_by("shard")]
    with ThreadPoolExecutor(storage.at_once) as pool:
        counted = list(pool.map(count, jobs))
    tokens, total = sum(one for one, _ in counted), sum(one for _, one in counted)
    return CacheStats(
        shards=len(names),
        size=sum(storage.size(name) for name in names),
        rows=every.height,
        completions=best.height,
        complete=int(best["complete"].sum()),
        tokens=tokens,
        nats_per_token=total / tokens if tokens else float("nan"),
        unfit=unfit,
    )


def prune_cache(storage: Storage, coverage: Coverage, manifest: Manifest | None) -> Pruned:
    """Remove what serves nothing: leftovers of dead processes, sums of other shards or damaged ones, and shards of which
    every row is served as well by another.

    Only sound shards count, on either side: a damaged one is left for ``verify`` to name.
    """
    leftovers = sum(storage.clear_leftovers(folder) for folder in WRITTEN_TO)
    sound = [
        report.name
        for report in verify_shards(storage, manifest)
        if report.problem is None and report.name.startswith(f"{SHARDS}/")
    ]
    serving = best_rows(coverage.rows(sound))["shard"].unique()
    superseded = sorted(set(sound) - set(serving.to_list()))
    left = [name for name in storage.list(SHARDS) if name not in superseded]
    current = f"{SUMS}/{shards_key(left, manifest)}-"
    stale = [
        name
        for name in storage.list(SUMS)
        if not name.startswith(current) or load_sums(storage, name.removeprefix(f"{SUMS}/")) is None
    ]
    size = 0
    for name in superseded + stale:
        size += storage.size(name)
        storage.delete(name)
    return Pruned(leftovers, len(stale), len(superseded), size)
