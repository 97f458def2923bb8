"""Time and memory that a chat template may take: it is a program from elsewhere, and may never end or fill the memory.

Jinja's sandbox keeps a template from the machine; it does not keep it from looping over loops, doubling a string, or one
step in C that takes minutes, which nothing can stop from within. A template runs in a process of its own, which is killed
when its time is over. The process is a fork: it has the tokenizer and the compiled template at once, and a conversation
costs some ten microseconds more than a call.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import struct
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Of the processor, for one conversation. Templates take well under a millisecond.
SECONDS = 5.0
# On the clock: a busy machine is given time, and a template that does not run takes none of the processor's.
CLOCK_SECONDS = 60.0
# Over all conversations: the seconds of one, and so much for each conversation and each character of it.
SECONDS_EACH = 0.02
SECONDS_PER_CHARACTER = 2e-6
BYTES = 512 << 20
# What may come back; the longest conversations have some megabytes.
TEXT_BYTES = 64 << 20

_LOOK_EVERY = 0.1
_LENGTH = struct.Struct("<Q")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class TemplateLimitError(Exception):
    """A template took too long, or asked for too much memory."""


class TemplateFaultError(Exception):
    """What the template raised; ``kind`` is the name of the error's class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Watched:
    """A function that runs in a process of its own, within bounds of time and memory.

    A function that reached a bound is refused from then on: each further conversation would take as long.

    Args:
        function: of plain data (strings, numbers, lists, dicts), to a string. On a system without fork it runs in this
            process, unbounded.
    """

    def __init__(self, function: Callable[..., str]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._refused = ""
        self._calls = self._characters = 0
        self._spent = 0.0

    def __call__(self, *given: Any) -> str:
        """The function's result.

        Raises:
            TemplateLimitError: where a bound was reached, now or before.
            TemplateFaultError: for what the function raised.
        """
        if not hasattr(os, "fork"):
            try:
                return self._function(*given)
            except Exception as error:
                raise TemplateFaultError(type(error).__name__, str(error)) from error
        with self._lock:
            if self._refused:
                raise TemplateLimitError(self._refused)
            try:
                return self._result(json.dumps(given).encode())
            except TemplateLimitError as error:
                self._refused = str(error)
                self._end()
                raise

    def _result(self, given: bytes) -> str:
        kind, message, seconds = self._ask(given)
        self._calls += 1
        self._characters += len(given)
        self._spent += seconds
        if self._spent > SECONDS + SECONDS_EACH * self._calls + SECONDS_PER_CHARACTER * self._characters:
            raise TemplateLimitError(
                f"it takes {self._spent / self._calls:.2g} seconds for a conversation, on average over {self._calls:,}"
            )
        if kind == "MemoryError":
            raise TemplateLimitError(f"it asks for more than {BYTES >> 20} MiB of memory")
        if kind:
            raise TemplateFaultError(kind, message)
        return message

    def _ask(self, given: bytes) -> tuple[str, str, float]:
        for _ in range(2):  # a process may be killed for another's sake; twice is no chance
            if self._process is None or self._process.owner != os.getpid():
                self._process = _Process(self._function)
                weakref.finalize(self, self._process.end)
            try:
                return self._process.ask(given)
            except (EOFError, BrokenPipeError):
                self._end()
            except BaseException:  # an answer that nobody waits for any more would be taken for the next
                self._end()
                raise
        raise TemplateLimitError("the process that renders it is killed or crashes, twice in a row")

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class _Process:
    """A fork of this process that answers with a function's results, one at a time."""

    def __init__(self, function: Callable[..., str]) -> None:
        self.owner = os.getpid()
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        # The tokenizers library warns of forks, unless it is told whether it may use threads: none are used there.
        decided = "TOKENIZERS_PARALLELISM" in os.environ
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads: the fork runs Python alone
            self.pid = os.fork()
        if self.pid == 0:
            _serve(function, requests, answers, self.owner)
        if not decided:
            del os.environ["TOKENIZERS_PARALLELISM"]
        os.close(requests)
        os.close(answers)
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)

    def ask(self, given: bytes) -> tuple[str, str, float]:
        """The name of the error's class (empty for none), result or message, and the seconds of the processor it took.

        Raises:
            EOFError, BrokenPipeError: where the process ended.
            TemplateLimitError: where it took too long.
        """
        _write(self._requests, given)
        if not self._poll.poll(1000 * _LOOK_EVERY):
            self._watch()
        kind, message, seconds = json.loads(_read(self._answers))
        return kind, message, seconds

    def _watch(self) -> None:
        """Wait for an answer that takes long."""
        import psutil

        began = time.monotonic()
        try:
            process = psutil.Process(self.pid)
            spent, size = _cpu_seconds(process), process.memory_info().rss
            while not self._poll.poll(1000 * _LOOK_EVERY):
                if _cpu_seconds(process) - spent > SECONDS or time.monotonic() - began > CLOCK_SECONDS:
                    raise TemplateLimitError(f"it takes more than {SECONDS:g} seconds")
                if process.memory_info().rss - size > BYTES:  # where the system does not bound it
                    raise TemplateLimitError(f"it asks for more than {BYTES >> 20} MiB of memory")
        except psutil.NoSuchProcess:
            return  # reading says that it ended

    def end(self) -> None:
        """Kill it. Nothing happens for one that ended, or that another process started."""
        if os.getpid() != self.owner or self.pid == 0:
            return
        pid, self.pid = self.pid, 0
        for descriptor in (self._requests, self._answers):
            with suppress(OSError):
                os.close(descriptor)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _cpu_seconds(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _serve(function: Callable[..., str], requests: int, answers: int, parent: int) -> None:
    """Answer until the parent is gone. Never returns: this is a fork, whose caller's frames are another process's."""
    try:
        _stand_apart(parent, requests, answers)
        while True:
            given = json.loads(_read(requests))
            began = time.process_time()
            try:
                kind, message = "", function(*given)
                if len(message) > TEXT_BYTES:
                    kind, message = "MemoryError", ""
            except MemoryError:
                kind, message = "MemoryError", ""
            except Exception as error:
                kind, message = type(error).__name__, str(error)[:10_000]
            _write(answers, json.dumps((kind, message, time.process_time() - began)).encode())
    except BaseException:
        os._exit(1)


def _stand_apart(parent: int, requests: int, answers: int) -> None:
    """Keep nothing of the parent's open or in force: its files, its terminal, what it does on signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    low, high = sorted((requests, answers))
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, os.sysconf("SC_OPEN_MAX"))
    gc.freeze()  # what the collector does not look at stays memory that is shared
    _bound_memory()


def _bound_memory() -> None:
    """Let the process grow by so much and no more, where the system tells its size."""
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        with open("/proc/self/statm", "rb") as file:
            size = int(file.read(64).split()[0]) * resource.getpagesize() + BYTES
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size if soft == resource.RLIM_INFINITY else min(size, soft), hard))


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(_LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(descriptor, left) :]


def _read(descriptor: int) -> bytes:
    """One message. Raises EOFError where the other end is gone."""
    (length,) = _LENGTH.unpack(_exactly(descriptor, _LENGTH.size))
    return _exactly(descriptor, length)


def _exactly(descriptor: int, count: int) -> bytes:
    data = os.read(descriptor, count)
    if len(data) == count:
        return data
    parts = [data]
    while data and (count := count - len(data)):
        data = os.read(descriptor, count)
        parts.append(data)
    if not data:
        raise EOFError
    return b"".join(parts)
