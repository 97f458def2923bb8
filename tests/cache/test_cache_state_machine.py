"""A cache of one reference under random operations and damage, compared with a dict of the written rows.

Rows are written by two writers that may be open at the same time. Processes die with buffered rows and leave partial files;
bytes flip; shards are truncated, removed, or replaced by another reference's; damaged files are set aside and their rows
written again; the cache is pruned and reopened. At all times the cache serves exactly the dict's rows, each completion
once, and its counts add up. While a file is damaged, the cache refuses what depends on it and names the file.

`MRPO_MACHINE_EXAMPLES` and `MRPO_MACHINE_STEPS` set how long it runs; `make soak` sets them high.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scored_rows import FINGERPRINT, cid, counted_sum, row, serving_row, wanted

from mrpo_pipeline.cache import CompletionRow, ReferenceCache, ShardWriter, Unfit
from mrpo_pipeline.cache.schema import encode_shard, rows_to_table
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.files.atomic import temporary_name

EXAMPLES = int(os.environ.get("MRPO_MACHINE_EXAMPLES", "12"))
STEPS = int(os.environ.get("MRPO_MACHINE_STEPS", "25"))

NUMBERS = range(4)
LENGTHS = range(1, 5)
CUTS = (None, 1, 3, 4)
ASKED = [(number, cut) for number in NUMBERS for cut in CUTS]
WRITERS = (0, 1)

numbers = st.sampled_from(NUMBERS)


def scored(number: int, length: int, complete: bool) -> CompletionRow:
    """The row that any process scores for a completion prefix, determined by number and length."""
    return row(number, [-(number + 1) / (place + 2) for place in range(length)], range(1, length + 1), complete)


rows_scored = st.builds(scored, numbers, st.sampled_from(LENGTHS), st.booleans())


@once
def dead_pid() -> int:
    """The id of a process that ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


class CacheMachine(RuleBasedStateMachine):
    """``rows``: shard → its rows as written. ``damaged``: damaged files."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mrpo-machine-"))
        self.rows: dict[str, list[CompletionRow]] = {}
        self.unfit: dict[str, set[int]] = {}
        self.damaged: dict[str, bytes] = {}
        self.in_hand: dict[int, list[CompletionRow]] = {}
        self.writers: dict[int, ShardWriter] = {}
        self.leftovers: set[Path] = set()
        self.draw = random.Random(0)

    @initialize()
    def begin(self) -> None:
        self.cache = ReferenceCache.open(self.folder, "base")
        self.cache.create_or_check(FINGERPRINT)
        other = ReferenceCache.open(self.folder, "other")
        other.create_or_check({**FINGERPRINT, "weights": "sha256:v"})
        with other.writer() as writer:
            writer.add(scored(0, 2, True))
        self.foreign = self.folder / "other" / writer.shards[0]

    def teardown(self) -> None:
        """At the end, close the writers, restore damaged files, and check that clearing up changes no answer."""
        try:
            if hasattr(self, "cache"):
                for slot in WRITERS:
                    self.close_writer(slot)
                if self.damaged:
                    self.put_back()
                self.prune()
                self.serves_exactly_the_model_or_names_the_damaged_file()
        finally:
            shutil.rmtree(self.folder)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def every_row(self) -> list[CompletionRow]:
        return [one for rows in self.rows.values() for one in rows]

    # Operations of processes.

    @rule(slot=st.sampled_from(WRITERS), rows_per_shard=st.integers(1, 4))
    def open_writer(self, slot: int, rows_per_shard: int) -> None:
        if slot not in self.writers:
            opened = ReferenceCache.open(self.folder, "base")
            self.writers[slot] = opened.writer(rows_per_shard=rows_per_shard).__enter__()
            self.in_hand[slot] = []
            self.leftovers = {path for path in self.leftovers if path.parent != self.base / "shards"}

    @rule(slot=st.sampled_from(WRITERS), rows=st.lists(rows_scored, min_size=1, max_size=5), flushed=st.booleans())
    def add(self, slot: int, rows: list[CompletionRow], flushed: bool) -> None:
        if slot not in self.writers:
            self.open_writer(slot, 4)
        for one in rows:
            self.in_hand[slot].append(one)
            self.writers[slot].add(one)
            self._written(slot)
        if flushed:
            self.flush(slot)

    @rule(slot=st.sampled_from(WRITERS))
    def flush(self, slot: int) -> None:
        if slot in self.writers:
            self.writers[slot].flush()
            self._written(slot)

    @rule(slot=st.sampled_from(WRITERS))
    def close_writer(self, slot: int) -> None:
        if slot in self.writers:
            self.writers[slot].__exit__(None, None, None)
            self._written(slot)
            assert not self.in_hand[slot]
            del self.writers[slot]

    @rule(slot=st.sampled_from(WRITERS), half=st.binary(max_size=40))
    def crash(self, slot: int, half: bytes) -> None:
        """The process dies: buffered rows are lost, and a partial file stays."""
        if slot in self.writers:
            del self.writers[slot]
            path = self.base / "shards" / temporary_name().replace(f"-{os.getpid()}-", f"-{dead_pid()}-")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(half)
            self.leftovers.add(path)

    @rule(number=numbers)
    def mark_unfit(self, number: int) -> None:
        before = self._files("unfit")
        self.cache.mark_unfit([Unfit(cid(100 + number), None, 50, 40)])
        for name in self._files("unfit") - before:
            self.unfit[name] = {100 + number}

    def _written(self, slot: int) -> None:
        """Record the rows written since the last call: its shards hold them in order."""
        for name in self.writers[slot].shards:
            count = self.writers[slot]._rows_per_shard
            rows = self.in_hand[slot][:count] if len(self.in_hand[slot]) >= count else self.in_hand[slot]
            assert (self.base / name).is_file()
            self.rows[name] = list(rows)
            self.damaged.pop(name, None)  # written again completely
            self.in_hand[slot] = self.in_hand[slot][len(rows) :]
        self.writers[slot].shards.clear()

    # Damage to files.

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), how=st.sampled_from(["number", "flip", "cut", "empty", "exchange"]))
    def damage(self, data: Any, how: str) -> None:
        name = data.draw(st.sampled_from(sorted([*self.rows, *self.unfit])))
        path = self.base / name
        sound = path.read_bytes()
        if name in self.damaged:
            return
        changed = bytearray(sound)
        if how == "flip":
            changed[data.draw(st.integers(0, len(sound) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "number" and name in self.rows:
            # Still readable, with one changed log-prob: only the checksum of the whole file detects it.
            first, *others = self.rows[name]
            wrong = replace(first, logprobs=first.logprobs - np.float32(1))
            changed = bytearray(encode_shard(rows_to_table([wrong, *others]), FINGERPRINT))
        elif how == "exchange":
            changed = bytearray(self.foreign.read_bytes())
        else:
            changed = changed[: 0 if how != "cut" else data.draw(st.integers(0, len(sound) - 1))]
        path.write_bytes(changed)
        self.damaged[name] = sound

    @rule()
    def a_shard_of_another_reference_comes(self) -> None:
        name = f"shards/{self.foreign.name}"
        if name not in self.damaged:
            (self.base / "shards").mkdir(exist_ok=True)
            shutil.copy(self.foreign, self.base / name)
            self.damaged[name] = b""

    @precondition(lambda self: self.damaged)
    @rule()
    def put_back(self) -> None:
        for name, sound in self.damaged.items():
            if sound:
                (self.base / name).write_bytes(sound)
            else:
                (self.base / name).unlink()
        self.damaged.clear()
        self.reopen()

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def delete_shard(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.rows)))
        (self.base / name).unlink()
        del self.rows[name]
        self.damaged.pop(name, None)

    # Maintenance.

    @rule()
    def reopen(self) -> None:
        self.cache = ReferenceCache.open(self.folder, "base")

    @rule()
    def prune(self) -> None:
        """Prune keeps rows that are served and damaged files; it removes leftovers of dead processes, not of running ones."""
        living = self.base / "shards" / temporary_name()
        living.parent.mkdir(exist_ok=True)
        living.write_bytes(b"half")
        if any(name.startswith("unfit/") for name in self.damaged):
            living.unlink()
            return
        before = self._files("shards")
        answers = None if self.damaged else self._answers()
        done = self.cache.prune()
        gone = before - self._files("shards")
        assert done.shards == len(gone) and not gone & self.damaged.keys()
        for name in gone:
            del self.rows[name]
        assert done.leftovers == len(self.leftovers) and living.exists()
        living.unlink()
        self.leftovers.clear()
        assert answers is None or answers == self._answers()

    @precondition(lambda self: self.damaged)
    @rule()
    def repair(self) -> None:
        """Set damaged files aside, and write exactly their rows again."""
        fresh = ReferenceCache.open(self.folder, "base")
        named = [report.name for report in fresh.verify() if report.problem]
        assert set(named) == self.damaged.keys()
        moved = fresh.set_aside(named)
        assert all(name.startswith("damaged/") for name in moved)
        hit = [one for name in named for one in self.rows.pop(name, [])]
        for name in named:
            self.unfit.pop(name, None)
        self.damaged.clear()
        self.reopen()
        left = self.every_row()
        lost = {(one.completion_id, cut) for one in hit for n, cut in ASKED if cid(n) == one.completion_id
                if serving_row([*left, *hit], n, cut) and not serving_row(left, n, cut)}  # fmt: skip
        before = {(cid(n), cut) for n, cut in ASKED if not serving_row([*left, *hit], n, cut)}
        missing = set(self.cache.missing(wanted(ASKED)).select("completion_id", "cut").rows())
        assert missing == before | lost
        with self.cache.writer(rows_per_shard=1000) as writer:
            for one in hit:
                writer.add(one)
        if hit:
            self.rows[writer.shards[0]] = hit
        self.leftovers = {path for path in self.leftovers if path.parent != self.base / "shards"}

    # Invariants.

    def _files(self, folder: str) -> set[str]:
        return {f"{folder}/{path.name}" for path in (self.base / folder).glob("*.parquet")}

    def _answers(self) -> list[tuple[float | None, int | None]]:
        return list(self.cache.sums(wanted(ASKED), on_missing="null").select("logps", "tokens").iter_rows())

    @invariant()
    def serves_exactly_the_model_or_names_the_damaged_file(self) -> None:
        fresh = ReferenceCache.open(self.folder, "base")
        asked = wanted(ASKED)
        if self.damaged:
            for read in (fresh.rows, fresh.sums, self.cache.sums):
                self._sound_or_refused(read, asked)
            assert {report.name for report in fresh.verify() if report.problem} == self.damaged.keys()
            return
        rows = self.every_row()
        serving = {(n, cut): serving_row(rows, n, cut) for n, cut in ASKED}
        for cache in (fresh, self.cache):
            missing = set(cache.missing(asked).select("completion_id", "cut").rows())
            assert missing == {(cid(n), cut) for (n, cut), best in serving.items() if best is None}
            found = cache.rows(asked)
            assert found["completion_id"].n_unique() == found.height
            expected = {one.completion_id: one for one in serving.values() if one is not None}
            assert {one["completion_id"]: one["logprobs"] for one in found.iter_rows(named=True)} == {
                name: one.logprobs.tolist() for name, one in expected.items()
            }
            sums = cache.sums(asked, on_missing="null")
            for (n, cut), logp, tokens in zip(ASKED, sums["logps"], sums["tokens"], strict=True):
                best = serving[n, cut]
                summed = None if best is None else counted_sum(best, cut)
                assert (logp, tokens) == ((None, None) if summed is None else (pytest.approx(summed[0]), summed[1]))
        stats = fresh.stats()
        assert stats.rows == len(rows) and stats.shards == len(self.rows)
        assert stats.completions == len({one.completion_id for one in rows})
        assert sum(report.rows for report in fresh.verify()) == len(rows)
        assert stats.unfit == len(set().union(*self.unfit.values())) if self.unfit else stats.unfit == 0

    def _sound_or_refused(self, read: Any, asked: Any) -> None:
        """While files are damaged, a read names one of them or returns only rows from intact ones."""
        refused: UserError | RunError | None = None
        try:
            found = read(asked)
        except (UserError, RunError) as error:
            refused = error
        if refused is not None:
            told = str(refused)
            lacking = isinstance(refused, UserError) and "lacks" in told
            assert lacking or any(name in told for name in self.damaged)
            return
        sound = [one for name, rows in self.rows.items() for one in rows]
        for one in found.iter_rows(named=True):
            if "logps" in one:
                best = serving_row(sound, next(n for n in NUMBERS if cid(n) == one["completion_id"]), one["cut"])
                assert best is not None and one["logps"] == pytest.approx(counted_sum(best, one["cut"])[0])
            else:
                written = [row.logprobs.tolist() for row in sound if row.completion_id == one["completion_id"]]
                assert one["logprobs"] in written


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize="MRPO_MACHINE_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
