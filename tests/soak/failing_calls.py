"""A small run over a cache in which one file system call fails, for every call and every kind of error, one at a time.

Each operation of the storage layer (put, create, list, read, open) and each call below it (rename, link, fsync, mkdir,
list, open, read) fails at its n-th call with each of several errors, for every n of the run: before the call is done, and
for writes also after it (a network file system may do an operation and report a failure). The run must end with one clear
paragraph, or succeed if the call was not needed. Every shard stays complete and none is lost. Repeating the run gives the
cache of an undisturbed run.

python tests/soak/failing_calls.py
"""

from __future__ import annotations

import builtins
import errno
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cache"))

import polars as pl
from driver import parser_of, seen_lines, spent, write_summary, wrong_lines
from scored_rows import FINGERPRINT, cid, row, wanted

from mrpo_pipeline.cache import ReferenceCache, Unfit
from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.errors import RunError, UserError

KINDS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.ENOENT, errno.ESTALE)

ROWS = {number: row(number, [-number - 1.0, -0.25, -0.5], [1, 3, 3], True) for number in range(8)}
UNFIT = 8
ASKED = wanted([(number, 2 if number % 3 == 0 else None) for number in ROWS])


@dataclass(frozen=True)
class Seam:
    """A function that can be made to fail: ``owner.name``; ``writes`` if it may also fail after it is done."""

    owner: Any
    name: str
    writes: bool = False

    @property
    def label(self) -> str:
        return f"{getattr(self.owner, '__name__', self.owner)}.{self.name}"


SEAMS = (
    *(Seam(LocalStorage, name, True) for name in ("put", "create", "make_root")),
    *(Seam(LocalStorage, name) for name in ("list", "read", "open", "clear_leftovers")),
    *(Seam(os, name, True) for name in ("replace", "link", "fsync")),
    Seam(os, "listdir"),
    Seam(builtins, "open"),
    Seam(Path, "read_bytes"),
    Seam(Path, "mkdir", True),
)


@contextmanager
def failing(seam: Seam, nth: int, number: int | None, *, after: bool = False) -> Iterator[list[int]]:
    """Let the ``nth`` call (from 1) fail with the error of that number; None for no failure. Yields a list whose length is the
    number of calls."""
    real = getattr(seam.owner, seam.name)
    calls: list[int] = []

    def called(*given: Any, **named: Any) -> Any:
        if seam.owner is builtins and (len(given) < 2 or given[1] != "xb"):  # only the cache's temporary files
            return real(*given, **named)
        calls.append(len(calls) + 1)
        hit = number is not None and len(calls) == nth
        done = real(*given, **named) if after or not hit else None
        if hit:
            assert number is not None
            raise OSError(number, os.strerror(number), str(given[0]) if given else None)
        return done

    with patch.object(seam.owner, seam.name, called):
        yield calls


def run(root: Path) -> pl.DataFrame:
    """Score missing completions, three rows per shard, and read the sums, as stage one and stage two do."""
    cache = ReferenceCache.open(root, "base")
    cache.create_or_check(FINGERPRINT, {"engine": "made up"})
    asked = pl.concat([ASKED, wanted([(UNFIT, None)])])
    missing = cache.missing(asked)["completion_id"].to_list()
    if cid(UNFIT) in missing:
        cache.mark_unfit([Unfit(cid(UNFIT), None, 50, 40)])
    with cache.writer(rows_per_shard=3) as writer:
        for one in ROWS.values():
            if one.completion_id in missing:
                writer.add(one)
    if cache.unfit(asked)["completion_id"].to_list() != [cid(UNFIT)]:
        # As in stage two: a missing folder is an empty cache.
        raise UserError("lacks 1 of 9 completions: expected it scored, or known not to fit.")
    return cache.sums(ASKED)


@dataclass
class FailingCalls:
    """Results. ``seen``: call → how the run ended → how often; ``wrong``: violations."""

    folder: Path
    kinds: Sequence[int] = KINDS
    seen: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def every(self, choose: Callable[[int], Sequence[int]] | None = None) -> None:
        """Every call of every seam.

        Args:
            choose: which kinds of error the k-th case uses; all by default.
        """
        self.expected = run(self.folder / "undisturbed")
        case = 0
        for seam in SEAMS:
            with failing(seam, 0, None) as calls:
                run(self.folder / "counted")
            shutil.rmtree(self.folder / "counted")
            for nth in range(1, len(calls) + 1):
                for after in (False, True) if seam.writes else (False,):
                    case += 1
                    for number in self.kinds if choose is None else choose(case):
                        self._one(seam, nth, number, after)

    def _one(self, seam: Seam, nth: int, number: int, after: bool) -> None:
        root = self.folder / "failing"
        what = f"{seam.label}, call {nth}, {errno.errorcode[number]} {'after' if after else 'before'} it was done"
        ended = "ended well all the same"
        try:
            with failing(seam, nth, number, after=after):
                found = run(root)
            if not found.equals(self.expected):
                self.wrong.append(f"{what}: the run ended with other sums")
        except (UserError, RunError) as error:
            ended = type(error).__name__
            if os.strerror(number) not in str(error) and number != errno.ENOENT:
                self.wrong.append(f"{what}: the reason is not told: {error}")
            if "\n" in str(error):
                self.wrong.append(f"{what}: not one paragraph: {error}")
        except Exception as error:
            ended = f"no clear end: {type(error).__name__}"
            self.wrong.append(f"{what}: {type(error).__name__}: {error}")
        self.seen.setdefault(seam.label, Counter())[ended] += 1
        self.wrong += [f"{what}: {wrong}" for wrong in self._left(root)]
        shutil.rmtree(root, ignore_errors=True)

    def _left(self, root: Path) -> Iterator[str]:
        """Violations in the cache after the fault, and after a rerun."""
        before = {path: path.read_bytes() for path in (root / "base").glob("shards/*.parquet")}
        if before:
            cache = ReferenceCache.open(root, "base")
            yield from (f"{report.name}: {report.problem}" for report in cache.verify() if report.problem)
            if not served(cache) <= {(one.completion_id, tuple(one.logprobs.tolist())) for one in ROWS.values()}:
                yield "rows are served that were never written"
        try:
            if not run(root).equals(self.expected):
                yield "the rerun has other sums"
        except (UserError, RunError) as error:
            yield f"the rerun failed: {error}"
            return
        cache = ReferenceCache.open(root, "base")
        if served(cache) != {(one.completion_id, tuple(one.logprobs.tolist())) for one in ROWS.values()}:
            yield "the rerun serves other rows"
        yield from (f"after the rerun {report.name}: {report.problem}" for report in cache.verify() if report.problem)
        yield from (f"{path.name} was lost" for path, data in before.items() if path.read_bytes() != data)
        yield from (f"{path.name} was left behind" for path in root.rglob("*.partial"))


def served(cache: ReferenceCache) -> set[tuple[str, tuple[float, ...]]]:
    """Completion and log-probs of every row that is served."""
    rows = cache.rows(ASKED)
    return {(one["completion_id"], tuple(one["logprobs"])) for one in rows.iter_rows(named=True)}


def main() -> int:
    given = parser_of(__doc__, seed="nothing is drawn: every call fails by every error").parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("mrpo").setLevel(logging.CRITICAL)  # sums that cannot be stored are logged each time
    print(f"failing calls: {len(SEAMS)} operations, {len(KINDS)} errors", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        calls = FailingCalls(Path(folder))
        calls.every()
    told = {
        "failing_calls": sum(seen.total() for seen in calls.seen.values()),
        **spent(began),
        "seen": {label: dict(seen) for label, seen in calls.seen.items()},
        "wrong": calls.wrong,
    }
    print("\n".join([*seen_lines(calls.seen, 32), f"  {told['failing_calls']} calls that failed"]))
    print("\n".join(wrong_lines(calls.wrong)))
    return write_summary(given.out, "failing_calls", told, held=not calls.wrong)


if __name__ == "__main__":
    raise SystemExit(main())
