"""Real `mrpo` commands that are killed at a random instant, or at a chosen place among their file system operations.

A fork server has the imports done, so that a command starts in tenths of a second and is killed while it works. It is the
real command with its signal handlers and exit codes; its output goes to a file.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

IMPORTS = (
    "torch",
    "mrpo_cli.main",
    "mrpo_pipeline.scoring",
    "mrpo_pipeline.engines.transformers",
    "mrpo_pipeline.policy.run",
    "mrpo_pipeline.policy.trainer",
    "mrpo_pipeline.policy.anchor_check",
    "mrpo_pipeline.exports.targets_file",
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora",
)

# Python's audit events for changes in the file system; `fsync` is added, since it has none.
EVENTS = frozenset({"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"})
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
PATIENCE = float(os.environ.get("MRPO_PATIENCE", "120"))  # seconds; a busy machine takes longer
# Completions between two checks of the cache: few, so that some hundreds of completions are many units.
UNIT = 16


@dataclass(frozen=True)
class Aim:
    """A place to die at: the ``nth`` time (from 1) that the process is about to do ``label``. Attributes: label: an event
    and its path, with digests and numbers as ``*``: ``os.rename cache/base/shards/*.partial``. torn: truncate the file
    to a share of its bytes first, like a kill during a write; for ``fsync``. late: seconds that the process continues; 0
    to die there."""

    label: str
    nth: int = 1
    torn: bool = False
    late: float = 0.0


@dataclass
class Order:
    """The task of a child."""

    arguments: Sequence[str]
    folder: str
    said: str
    journal: str
    trace: str
    done: str
    aim: Aim | None = None
    signal: int = signal.SIGKILL
    environment: Mapping[str, str] = field(default_factory=dict)


def label_of(event: str, path: str, folder: str) -> str | None:
    """The label of an event and its path, the same for every run; None outside the folder."""
    absolute = os.path.abspath(path)
    if not absolute.startswith(folder + os.sep):
        return None
    relative = absolute[len(folder) + 1 :]
    return f"{event} {re.sub(r'[0-9a-f]{8,}|[0-9]+', '*', relative)}".replace("*-*-*.partial", "*.partial")


def run(order: Order, tell: Connection) -> None:
    """Run the command in the child and watch its events."""
    os.environ.update(order.environment)
    output = os.open(order.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["mrpo", *order.arguments]
    from mrpo_pipeline.scoring import concurrent_runs

    concurrent_runs.ALONE, concurrent_runs.TOGETHER = {"transformers": UNIT}, UNIT
    _journal_rows(order.journal)
    _watch(order, tell)
    from mrpo_cli.main import main

    # In the background of a script this driver ignores SIGINT, and so would a command that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tell.send("ready")
    try:
        main()
    except SystemExit as leaving:
        # A clock of the machine, which the killing process reads too.
        Path(order.done).write_text(f"{time.monotonic()!r} {leaving.code or 0}")
        raise


def _journal_rows(journal: str) -> None:
    """Journal each row that the cache's writer has received, bypassing every buffer of this process."""
    from mrpo_pipeline.cache.writer import ShardWriter

    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    take = ShardWriter.add

    def add(self: ShardWriter, row: Any) -> None:
        take(self, row)
        os.write(descriptor, f"{row.completion_id}\n".encode())

    ShardWriter.add = add  # type: ignore[method-assign]


def _watch(order: Order, tell: Connection) -> None:
    folder = os.path.abspath(order.folder)
    trace = os.open(order.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    seen: dict[str, int] = {}

    def happens(event: str, path: str) -> None:
        label = label_of(event, path, folder)
        if label is None:
            return
        os.write(trace, f"{label}\n".encode())
        seen[label] = seen.get(label, 0) + 1
        aim = order.aim
        if aim is None or label != aim.label or seen[label] != aim.nth:
            return
        if aim.torn and not os.path.isdir(path):
            os.truncate(path, os.stat(path).st_size // 2)
        if aim.late:
            tell.send("there")
        else:
            os.kill(os.getpid(), order.signal)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event not in EVENTS or isinstance(given[0], int) or given[0] is None:
            return
        if event == "open" and not given[2] & CHANGING:
            return
        happens(event, os.fsdecode(given[0]))

    flush = os.fsync

    def fsync(file: Any) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        happens("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(hook)


@dataclass
class End:
    """How a command ended: its exit code (negative: killed by that signal), seconds, and its output."""

    code: int
    seconds: float
    said: str
    rows: list[str]
    trace: list[str]
    signalled: bool
    rows_before: int | None = None
    """Rows that it had taken when the signal was sent, where that came from without."""
    after: float = 0.0
    """Seconds from the signal until the command's work was done, where it came before that."""


class Victim:
    """A running command that may be killed."""

    def __init__(self, process: Any, order: Order, told: Connection) -> None:
        self.process, self.order, self._told = process, order, told
        if told.poll(PATIENCE):
            told.recv()
        self.began = time.monotonic()
        self._signalled = 0.0
        self._rows_before: int | None = None

    def wait(self, seconds: float | None) -> bool:
        """Wait until it ends by itself or reaches its place; returns whether it did so within this many seconds."""
        ready = wait([self.process.sentinel, self._told], PATIENCE if seconds is None else max(seconds, 0))
        if not ready and seconds is None:
            raise TimeoutError(f"mrpo {' '.join(self.order.arguments)} did not end within {PATIENCE:.0f} s")
        return bool(ready)

    @property
    def alive(self) -> bool:
        return bool(self.process.is_alive())

    def send(self, number: int) -> None:
        """Send the signal, if it is alive."""
        if not self.alive:
            return
        rows, now = _text(self.order.journal).count("\n"), time.monotonic()
        with suppress(ProcessLookupError):  # it ended just before the kill
            os.kill(self.process.pid, number)
            self._rows_before, self._signalled = rows, now

    def end(self) -> End:
        """Wait for its end."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            raise TimeoutError(f"mrpo {' '.join(self.order.arguments)} did not end within {PATIENCE:.0f} s")
        self._told.close()
        code, now = self.process.exitcode, time.monotonic()
        done = _text(self.order.done).split()
        if done and code in (-signal.SIGTERM, -signal.SIGINT):
            code = int(done[1])  # the command was finished, and the signal hit the exiting process
        return End(
            code,
            now - self.began,
            *(_text(path) for path in (self.order.said,)),
            *(_text(path).split("\n")[:-1] for path in (self.order.journal, self.order.trace)),
            signalled=bool(self._signalled) or code == -signal.SIGKILL or code == 130,
            rows_before=self._rows_before,
            after=float(done[0]) - self._signalled if done and self._signalled else 0.0,
        )


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace") if os.path.exists(path) else ""


class Victims:
    """Starts commands that all work in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.records = self.folder.with_name(self.folder.name + "-records")
        self.records.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.environment = {"MRPO_HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(IMPORTS))
        self._count = 0

    def start(self, *arguments: str, aim: Aim | None = None, number: int = signal.SIGKILL) -> Victim:
        """Start ``mrpo ARGUMENTS``; with an aim, it dies of the signal at that place."""
        self._count += 1
        names = [str(self.records / f"{self._count}.{kind}") for kind in ("said", "journal", "trace", "done")]
        order = Order(arguments, str(self.folder), *names, aim, number, self.environment)
        told, tell = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run, args=(order, tell))
        process.start()
        tell.close()
        return Victim(process, order, told)

    @staticmethod
    def cpu_seconds() -> float:
        """CPU seconds of this process, the fork server and every finished command."""
        import psutil

        processes = [psutil.Process(), *psutil.Process().children()]
        return sum(sum(process.cpu_times()[:4]) for process in processes)

    def undisturbed(self, *arguments: str) -> End:
        """Run ``mrpo ARGUMENTS`` until it succeeds."""
        done = self.start(*arguments).end()
        if done.code != 0:
            raise RuntimeError(f"mrpo {' '.join(arguments)} ended with {done.code}: {done.said[-2000:]}")
        return done
