"""Time and memory that a chat template may take: it is a program from elsewhere, and may never end or fill the memory.

Jinja's sandbox keeps a template from the machine; it does not keep it from looping over loops or doubling a string.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Templates take well under a millisecond; a busy machine is given time.
SECONDS = 5.0
BYTES = 512 << 20

_LOOK_EVERY = 0.25


class TemplateLimitError(Exception):
    """A template went on for too long, or asked for too much memory."""


class _OverdueError(BaseException):
    """Raised in the rendering thread from outside; no template can catch it."""


class _Watchdog:
    """One thread that looks now and then whether a rendering is overdue, and raises in its thread if so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, float] = {}
        self._thread: threading.Thread | None = None

    def begin(self, thread: int) -> None:
        with self._lock:
            self._running[thread] = time.monotonic() + SECONDS
            if self._thread is None or not self._thread.is_alive():  # a forked process has none
                self._thread = threading.Thread(target=self._watch, name="template-limits", daemon=True)
                self._thread.start()

    def end(self, thread: int) -> bool:
        """Whether the exception was sent."""
        with self._lock:
            struck = self._running.pop(thread, None) is None
            return struck

    def _watch(self) -> None:
        idle = 0
        while idle < 40:
            time.sleep(_LOOK_EVERY)
            now = time.monotonic()
            with self._lock:
                idle = 0 if self._running else idle + 1
                for thread in [one for one, deadline in self._running.items() if deadline < now]:
                    del self._running[thread]
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_OverdueError))
                if idle >= 40:
                    self._thread = None


_watchdog = _Watchdog()


@contextmanager
def limited() -> Iterator[None]:
    """Bound what happens inside, in time and (on systems that can) in memory.

    Raises:
        TemplateLimitError: where a bound was reached.
    """
    thread = threading.get_ident()
    arrived = struck = False
    with _memory_bound():
        try:
            _watchdog.begin(thread)
            yield
        except _OverdueError:
            arrived = True
        except MemoryError:
            raise TemplateLimitError(f"it asks for more than {BYTES >> 20} MiB of memory") from None
        finally:
            try:
                struck = _watchdog.end(thread)
            except _OverdueError:
                arrived = True
            if struck and not arrived:
                _await_strike()
    if arrived or struck:
        raise TemplateLimitError(f"it goes on for more than {SECONDS:g} seconds")


def _await_strike() -> None:
    """The exception is on its way and strikes here, not in what comes next."""
    try:
        while True:
            time.sleep(0.001)
    except _OverdueError:
        return


@contextmanager
def _memory_bound() -> Iterator[None]:
    """Let the process's memory grow by so much and no more, where the system tells its size.

    A process started meanwhile by another thread would inherit the bound; none here renders and starts processes at once.
    """
    try:
        import resource

        statm = os.open("/proc/self/statm", os.O_RDONLY)
        try:
            pages = int(os.read(statm, 64).split()[0])
        finally:
            os.close(statm)
        before = resource.getrlimit(resource.RLIMIT_AS)
        size = pages * resource.getpagesize() + BYTES
    except (ImportError, OSError, ValueError, IndexError):
        yield
        return
    _set(resource, size if before[0] == resource.RLIM_INFINITY else min(size, before[0]), before[1])
    try:
        yield
    finally:
        _set(resource, *before)


def _set(resource: Any, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (OSError, ValueError):
        return
