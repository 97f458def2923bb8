"""Progress of the demo's longer steps: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

PLAIN_SECONDS = 10.0


def with_progress(label: str, total: int) -> Iterator[int]:
    """Yield 0 … total−1 and show on stderr how far it is, with the rate and the remaining time."""
    if sys.stderr.isatty():
        yield from _bar(label, total)
    else:
        yield from _lines(label, total)


def _bar(label: str, total: int) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        for step in range(total):
            yield step
            progress.advance(task)


def _lines(label: str, total: int) -> Iterator[int]:
    start = last = time.monotonic()
    for step in range(total):
        yield step
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS or step + 1 == total:
            done, last = step + 1, now
            rate = done / max(now - start, 1e-9)
            left = (total - done) / rate
            print(f"{label}: {done}/{total} ({rate:.1f} a second, {left:.0f} s left)", file=sys.stderr, flush=True)
