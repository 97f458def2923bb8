"""Cells of the GPU benchmark: one measurement each; its result is written to disk before the next one begins.

Running out of memory, lacking a package, failing or killing the process is also a result. Cheap to import.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DONE, LEFT_OUT, OUT_OF_MEMORY, FAILED, NO_TIME = "done", "left out", "out of memory", "failed", "no time left"
BROKEN_DEVICE = 3
"""Exit status of a stage whose device takes no further work in that process; another process continues."""

# Out-of-memory messages of CUDA, of torch on a CPU, and of this project's engine.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "do not fit in the memory")
_DEVICE_WORDS = ("cuda error", "device-side assert", "nccl error", "cublas_status")


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        run: returns its figures: ``value`` and ``unit``, optionally ``ratio`` and ``of``, ``peak_share``,
            ``memory_bytes``, ``note``, and anything else for the JSON.
        needs: packages that it imports.
        base: the cell by whose value its own is divided in the table.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    needs: tuple[str, ...] = ()
    base: str | None = None


class LeftOut(Exception):  # noqa: N818 - not an error: a figure that this machine cannot give
    """Why a cell cannot be measured on this machine."""


class TimeUp(BaseException):
    """The stage's time is over. A BaseException, so that no library handles it."""


class Record:
    """A stage's results on disk: ``STAGE.partial.json`` while it runs, ``STAGE.json`` once it has ended."""

    def __init__(self, folder: Path, stage: str, settings: Mapping[str, Any]) -> None:
        self.path, self.partial = folder / f"{stage}.json", folder / f"{stage}.partial.json"
        found = self.path if self.path.is_file() else self.partial
        self.document: dict[str, Any] = {"stage": stage, "settings": dict(settings), "planned": [], "cells": {}}
        if found.is_file():
            self.document = json.loads(found.read_text(encoding="utf-8"))
            if self.document["settings"] != dict(settings):
                raise SystemExit(
                    f"{found} holds results with the settings {self.document['settings']}: expected {dict(settings)}. "
                    "Remove the file, or give another folder by --out."
                )

    @property
    def is_complete(self) -> bool:
        return self.path.is_file()

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.document["cells"]
        return found

    @property
    def running(self) -> str | None:
        name: str | None = self.document.get("running")
        return name

    def plan(self, cells: Sequence[Cell], **more: Any) -> None:
        self.document |= {"planned": [cell.name for cell in cells], **more}
        self._write(self.partial)

    def begin(self, name: str) -> None:
        self.document["running"] = name
        self._write(self.partial)

    def put(self, name: str, figures: Mapping[str, Any]) -> None:
        self.document.pop("running", None)
        self.cells[name] = dict(figures)
        self._write(self.partial)

    def finish(self, *, rest: Mapping[str, Any] | None = None) -> None:
        """Write the final file, with ``rest`` for planned cells without a result."""
        for name in self.document["planned"]:
            self.cells.setdefault(name, dict(rest or {"state": NO_TIME}))
        self.document.pop("running", None)
        self._write(self.path)
        self.partial.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.document, indent=1), encoding="utf-8")
        os.replace(temporary, path)


def run_cells(record: Record, cells: Sequence[Cell], seconds: float) -> None:
    """Measure the cells that have no result yet, within this many seconds; afterwards the record is complete.

    Raises:
        SystemExit: with ``BROKEN_DEVICE`` if the device failed in a way from which a process cannot recover.
    """
    deadline = time.monotonic() + seconds
    for cell in cells:
        if cell.name in record.cells:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            break
        record.begin(cell.name)
        began = time.monotonic()
        figures = _measure(cell, left)
        if figures["state"] == NO_TIME:
            break
        record.put(cell.name, figures | {"wall_s": round(time.monotonic() - began, 2)})
        print(f"  {cell.name}: {_line(figures)}", flush=True)
        if any(word in figures.get("why", "").lower() for word in _DEVICE_WORDS) and figures["state"] == FAILED:
            raise SystemExit(BROKEN_DEVICE)
    record.finish()


def _measure(cell: Cell, seconds: float) -> dict[str, Any]:
    lacking = [name for name in cell.needs if not installed(name)]
    if lacking:
        return {"state": LEFT_OUT, "why": f"not installed: {', '.join(lacking)}"}
    figures: dict[str, Any]
    try:
        with _time_limit(seconds):
            figures = {"state": DONE, **cell.run()}
    except TimeUp:
        figures = {"state": NO_TIME}
    except LeftOut as reason:
        figures = {"state": LEFT_OUT, "why": str(reason)}
    except ImportError as error:
        figures = {"state": LEFT_OUT, "why": f"cannot be imported: {_one_line(error)}"}
    except (Exception, SystemExit) as error:
        state = OUT_OF_MEMORY if is_out_of_memory(error) else FAILED
        figures = {"state": state, "why": f"{type(error).__name__}: {_one_line(error)}"}
    left = release()  # outside the except clause, which keeps the tensors of the failed cell alive
    return figures | {"left_allocated_bytes": left}


def installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether it, or its cause, is a failed allocation."""
    while error is not None:
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _MEMORY_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def release() -> int:
    """Free unused memory; returns the bytes that stay allocated on the GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # a broken device, already reported
            torch.cuda.empty_cache()
            return int(torch.cuda.memory_allocated())
    return 0


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def end(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(figures: Mapping[str, Any]) -> str:
    if figures["state"] != DONE:
        return f"{figures['state']} ({figures['why']})" if "why" in figures else str(figures["state"])
    return f"{figures['value']:,.4g} {figures['unit']}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
