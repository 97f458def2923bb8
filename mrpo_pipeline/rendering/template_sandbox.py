"""Limits on the time and memory of chat templates, which are untrusted programs.

Jinja's sandbox does not prevent nested loops, exponential strings, or a single C call that takes minutes and cannot be
interrupted. So a template runs in a separate process, which is killed at the limit. The process is a fork, which has the
tokenizer and the compiled template without loading; the overhead is about ten microseconds per conversation.
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

# CPU seconds for one conversation. Templates usually take well under a millisecond.
SECONDS = 5.0
# Wall-clock seconds: allows for a busy machine, and stops a template that waits without using the CPU.
CLOCK_SECONDS = 60.0
# CPU seconds over all conversations: SECONDS, plus these per conversation and per character.
SECONDS_EACH = 0.02
SECONDS_PER_CHARACTER = 2e-6
BYTES = 512 << 20
# Size of the output; the longest conversations have a few megabytes.
TEXT_BYTES = 64 << 20

_OUT_OF_MEMORY = f"it needs more than {BYTES >> 20} MiB of memory"
_POLL_SECONDS = 0.1
_LENGTH = struct.Struct("<Q")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class TemplateLimitError(Exception):
    """A template exceeded its time or memory."""


class TemplateFaultError(Exception):
    """An error raised by the template; ``kind`` is the name of its class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class LimitedFunction:
    """Run a function in a separate process with limits on time and memory.

    After a limit is exceeded, all further calls fail at once.

    Args:
        function: takes plain data (strings, numbers, lists, dicts) and returns a string. On systems without fork it runs
            in this process without limits.
    """

    def __init__(self, function: Callable[..., str]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._refused = ""
        self._calls = self._characters = 0
        self._spent = 0.0

    def __call__(self, *given: Any) -> str:
        """Result of the function.

        Raises:
            TemplateLimitError: a limit was exceeded, now or before.
            TemplateFaultError: the function raised an error.
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
                f"it takes {self._spent / self._calls:.2g} seconds per conversation (mean of {self._calls:,})"
            )
        if kind == "MemoryError":
            raise TemplateLimitError(_OUT_OF_MEMORY)
        if kind:
            raise TemplateFaultError(kind, message)
        return message

    def _ask(self, given: bytes) -> tuple[str, str, float]:
        for _ in range(2):  # an unrelated event may kill the process once
            if self._process is None or self._process.owner != os.getpid():
                self._process = _Process(self._function)
                weakref.finalize(self, self._process.end)
            try:
                return self._process.ask(given)
            except (EOFError, BrokenPipeError):
                self._end()
            except BaseException:  # a pending answer would be taken for the next one
                self._end()
                raise
        raise TemplateLimitError("the process that renders it was killed or crashed twice in a row")

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class _Process:
    """A fork of this process that computes results of a function, one at a time."""

    def __init__(self, function: Callable[..., str]) -> None:
        self.owner = os.getpid()
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        # The tokenizers library warns about forks unless this variable is set; the fork uses no threads.
        decided = "TOKENIZERS_PARALLELISM" in os.environ
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about forks with threads; the fork runs Python only
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
        """(class name of the error or "", result or message, CPU seconds).

        Raises:
            EOFError, BrokenPipeError: the process ended.
            TemplateLimitError: a limit was exceeded.
        """
        _write(self._requests, given)
        if not self._poll.poll(1000 * _POLL_SECONDS):
            self._watch()
        kind, message, seconds = json.loads(_read(self._answers))
        return kind, message, seconds

    def _watch(self) -> None:
        """Wait for a slow answer and enforce the limits."""
        import psutil

        began = time.monotonic()
        try:
            process = psutil.Process(self.pid)
            spent, size = _cpu_seconds(process), process.memory_info().rss
            while not self._poll.poll(1000 * _POLL_SECONDS):
                if _cpu_seconds(process) - spent > SECONDS or time.monotonic() - began > CLOCK_SECONDS:
                    raise TemplateLimitError(f"it takes more than {SECONDS:g} seconds")
                if process.memory_info().rss - size > BYTES:  # on systems without RLIMIT_AS
                    raise TemplateLimitError(_OUT_OF_MEMORY)
        except psutil.NoSuchProcess:
            return  # the next read raises EOFError

    def end(self) -> None:
        """Kill the process, unless it has ended or belongs to another process."""
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
    """Serve requests until the parent exits. Never returns, because the caller's frames belong to the parent."""
    try:
        _isolate(parent, requests, answers)
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


def _isolate(parent: int, requests: int, answers: int) -> None:
    """Drop the parent's open files, terminal and signal handlers."""
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
    gc.freeze()  # keeps the parent's objects in shared memory
    _bound_memory()


def _bound_memory() -> None:
    """Limit the growth of the process to `BYTES`, on systems that report its size."""
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
    """Read one message. Raises EOFError if the other end is closed."""
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
