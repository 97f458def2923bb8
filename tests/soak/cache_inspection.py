"""Inspect a cache after a kill with plain tools: is every shard complete, and is any row lost, duplicated or changed?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.errors import RunError, UserError

NEAR = 1e-5
"""Nats that a log-prob may differ by between two runs."""


def leftovers(folder: Path) -> list[str]:
    """Temporary files anywhere under the folder."""
    found = [path for pattern in ("*.partial", "*.tmp") for path in folder.rglob(pattern)]
    return sorted(str(path.relative_to(folder)) for path in found)


class CacheInspection:
    """One reference's cache, followed from kill to kill. Args: root: the cache. name: the reference. wanted: the
    completions of a run (``completion_id``, ``cut``). expected: the rows of an undisturbed run's cache; None for that
    one itself."""

    def __init__(self, root: Path, name: str, wanted: pl.DataFrame, expected: pl.DataFrame | None = None) -> None:
        self.root, self.name, self.wanted, self.expected = root, name, wanted, expected
        self.shards: dict[str, list[str]] = {}
        """Name → completion ids, of every shard seen so far."""

    @property
    def ids(self) -> set[str]:
        """Every completion in a shard."""
        return {identifier for ids in self.shards.values() for identifier in ids}

    @property
    def rows(self) -> int:
        """Rows in all shards, counting duplicates."""
        return sum(map(len, self.shards.values()))

    def look(self, *, at_work: bool = False) -> list[str]:
        """The current violations. Args: at_work: whether a writer may be adding shards meanwhile."""
        return [*self._files(), *self._served(at_work)]

    def lost(self, rows: Iterable[str]) -> int:
        """The number of completions that a writer had received and that are in no shard."""
        return len(set(rows) - self.ids)

    def complete(self) -> list[str]:
        """Violations of a completely scored cache: it must serve what an undisturbed one serves, without partial files."""
        wrong = self.look()
        if wrong:
            return wrong
        cache = ReferenceCache.open(self.root, self.name)
        served = cache.rows(self.wanted)["completion_id"].n_unique()
        if served != self.wanted["completion_id"].n_unique():
            wrong.append(f"{served} of {self.wanted.height} completions are served at the end")
        elif cache.missing(self.wanted).height:
            wrong.append("the cache says that completions are missing at the end")
        wrong += [f"{report.name}: {report.problem}" for report in cache.verify() if report.problem]
        wrong += [f"{path} was left behind" for path in leftovers(self.root)]
        return wrong

    def _files(self) -> list[str]:
        wrong = []
        folder = self.root / self.name / "shards"
        found = {path.name: path for path in folder.glob("*.parquet")} if folder.is_dir() else {}
        wrong += [f"shard {name} is gone" for name in self.shards.keys() - found.keys()]
        for name, path in found.items():
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != path.stem:
                wrong.append(f"shard {name} is not what its name says")
                continue
            if name in self.shards:
                continue
            table = pq.read_table(path, use_threads=False).to_pydict()
            lengths = [list(map(len, table[column])) for column in ("token_ids", "logprobs", "byte_ends")]
            if not lengths[0] == lengths[1] == lengths[2] or not all(lengths[0]):
                wrong.append(f"shard {name} holds rows whose lists differ in length")
            self.shards[name] = table["completion_id"]
            if len(set(self.shards[name])) != len(self.shards[name]):
                wrong.append(f"shard {name} holds a completion twice")
        if found and not (self.root / self.name / "manifest.json").is_file():
            wrong.append("there are shards and no manifest")
        return wrong

    def _served(self, at_work: bool) -> list[str]:
        """The product's own reader: each completion once, all rows of the shards, with the right numbers."""
        try:
            rows = ReferenceCache.open(self.root, self.name).rows(self.wanted)
        except (RunError, UserError) as error:
            return [str(error)]
        ids = rows["completion_id"].to_list()
        wrong = []
        if len(set(ids)) != len(ids):
            wrong.append(f"{len(ids) - len(set(ids))} completions are served twice")
        apart = self.ids - set(ids) if at_work else self.ids ^ set(ids)
        if apart:
            wrong.append(f"{len(apart)} completions are in shards or served, and not both")
        return wrong + (differences(rows, self.expected) if self.expected is not None else [])


def differences(found: pl.DataFrame, expected: pl.DataFrame) -> list[str]:
    """Differences from the rows of an undisturbed run: ids and ends exactly, log-probs by more than ``NEAR``."""
    found = found.sort("completion_id")
    expected = expected.join(found.select("completion_id"), on="completion_id", how="semi").sort("completion_id")
    exact = ["completion_id", "prompt_tokens", "token_ids", "byte_ends", "complete"]
    if not found.select(exact).equals(expected.select(exact)):
        return ["rows are served that an undisturbed run does not have"]
    furthest = largest_difference(found, expected)
    return [f"log-probs differ by {furthest:.2g} nats from an undisturbed run's"] if furthest > NEAR else []


def largest_difference(found: pl.DataFrame, expected: pl.DataFrame) -> float:
    """Of log-probs of the same rows in the same order, nats."""
    pair = [frame["logprobs"].explode().to_numpy().astype(np.float64) for frame in (found, expected)]
    return float(np.abs(pair[0] - pair[1]).max()) if len(pair[0]) else 0.0
