"""What a person sees of long work: messages, and a bar with rate and remaining time (plain lines off a terminal)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mrpo_pipeline.output_edge import printable, stream_for_bars

PLAIN_INTERVAL = 30.0
QUICK = 2.0


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def show_messages(*, verbose: bool = False) -> None:
    """Show what ``mrpo`` says on stderr, a line each; with ``verbose``, what libraries say as well."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
    log = logging.getLogger("mrpo")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    log.handlers = [handler]


@dataclass(frozen=True)
class Progress:
    """What long work calls as it goes on."""

    advance: Callable[[float], None]


class _Lines:
    """A line every half minute, and one at the end of work that was not quick."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0.0
        self.began = self.told = time.monotonic()

    def advance(self, count: float) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.told >= PLAIN_INTERVAL:
            self.told = now
            rate = self.done / (now - self.began)
            left = f"{(self.total - self.done) / rate:,.0f} s left" if rate else "no estimate yet"
            self._say(f"{self.done:,.0f} of {self.total:,.0f} {self.unit}, {rate:,.1f}/s, {left}")

    def close(self) -> None:
        seconds = time.monotonic() - self.began
        if seconds >= QUICK:
            self._say(f"{self.done:,.0f} {self.unit} in {seconds:,.1f} s")

    def _say(self, text: str) -> None:
        print(printable(f"{self.what}: {text}"), file=sys.stderr, flush=True)


@contextmanager
def track(what: str, total: float, unit: str = "") -> Iterator[Progress]:
    """Follow work of a known size.

    Args:
        what: named at the start of the line.
        total: the size, in ``unit``.
    """
    if not sys.stderr.isatty():
        lines = _Lines(what, total, unit)
        try:
            yield Progress(lines.advance)
        finally:
            lines.close()
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(unit, markup=False),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(file=stream_for_bars())) as bar:
        task = bar.add_task(printable(what), total=total, rate="")

        def advance(count: float) -> None:
            bar.update(task, advance=count)
            speed = bar.tasks[0].speed
            if speed:
                bar.update(task, rate=f"{speed:,.1f}/s")

        yield Progress(advance)
