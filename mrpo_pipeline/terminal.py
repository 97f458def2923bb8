"""Terminal output: log messages, progress, and standard streams that escape control characters."""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TextIO

PLAIN_INTERVAL = 30.0
QUICK = 2.0


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


# Set to 1, they show the log lines of libraries, or hide all but warnings and errors. Child processes inherit them.
VERBOSE, QUIET = "MRPO_VERBOSE", "MRPO_QUIET"


def show_messages() -> None:
    """Log ``mrpo`` messages to stderr, at the level that ``VERBOSE`` and ``QUIET`` set."""
    verbose = bool(os.environ.get(VERBOSE))
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger().setLevel(logging.INFO if verbose else logging.WARNING)
    log = logging.getLogger("mrpo")
    log.setLevel(logging.WARNING if is_quiet() else logging.INFO)
    log.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    log.handlers = [handler]


def is_quiet() -> bool:
    """Whether progress and info messages are hidden."""
    return bool(os.environ.get(QUIET))


def progress_line(text: str) -> None:
    """Print a progress line to stderr."""
    if not is_quiet():
        print(printable(text), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Progress:
    """``advance`` is called with the amount of work done since the last call."""

    advance: Callable[[float], None]


class _Lines:
    """A progress line every half minute, and one at the end of work that took ``QUICK`` seconds or more."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0.0
        self.started = self.last_line = time.monotonic()

    def advance(self, count: float) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last_line >= PLAIN_INTERVAL:
            self.last_line = now
            rate = self.done / (now - self.started)
            left = f"{(self.total - self.done) / rate:,.0f} s left" if rate else "no estimate yet"
            progress_line(f"{self.what}: {self.done:,.0f} of {self.total:,.0f} {self.unit}, {rate:,.1f}/s, {left}")

    def close(self) -> None:
        seconds = time.monotonic() - self.started
        if seconds >= QUICK:
            progress_line(f"{self.what}: {self.done:,.0f} {self.unit} in {seconds:,.1f} s")


@contextmanager
def track(what: str, total: float, unit: str = "") -> Iterator[Progress]:
    """Show the progress of work of a known size: a bar on a terminal, lines elsewhere.

    Args:
        what: the start of the line.
        total: the size, in ``unit``.
    """
    if hasattr(signal, "siginterrupt"):
        # Importing polars makes system calls restart after Ctrl-C: a wait for other processes would not end
        # (pola-rs/polars#21739).
        signal.siginterrupt(signal.SIGINT, True)
    lines = _Lines(what, total, unit)
    try:
        if is_quiet() or not sys.stderr.isatty():
            yield Progress(lines.advance)
        else:
            with _bar(what, total, unit) as bar:

                def advance(count: float) -> None:
                    lines.done += count
                    bar.advance(count)

                yield Progress(advance)
    finally:
        lines.close()


@contextmanager
def _bar(what: str, total: float, unit: str) -> Iterator[Progress]:
    """A transient bar, so that a terminal finally shows the same lines as a pipe."""
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
    with rich_progress.Progress(*columns, console=Console(file=stream_for_bars()), transient=True) as bar:
        task = bar.add_task(printable(what), total=total, rate="")

        def advance(count: float) -> None:
            bar.update(task, advance=count)
            speed = bar.tasks[0].speed
            if speed:
                bar.update(task, rate=f"{speed:,.1f}/s")

        yield Progress(advance)


def one_line(value: object, most: int = 300) -> str:
    """A text or error on one line, truncated to ``most`` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[:most] + "…"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the warnings and progress bars of libraries, but not errors. This package reports what a user can act on itself."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    hide_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if hide_bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(transformers|peft|accelerate|torch)(\.|$)")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if hide_bars:
            logging.enable_progress_bar()


# Control characters and direction overrides, except line feeds and tabs.
_CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
_TEXT = re.compile(_CONTROLS)
# Sequences of rich that pass: colours in help and errors; in bars also erasing a line, moving or hiding the cursor, and \r.
_COLOURED = re.compile(rf"(\x1b\[[0-9;]*m)|{_CONTROLS}")
_BAR = re.compile(rf"(\x1b\[(?:[0-9;]*m|[0-9]*A|2K|\?25[lh])|\r)|{_CONTROLS}")

_ESCAPE = "mrpo-escape"


def printable(text: str) -> str:
    """The text with escaped control characters and direction overrides; line feeds and tabs stay."""
    return _TEXT.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return ascii(character)[1:-1] if character < "\x20" else f"\\u{ord(character):04x}"


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Encoding error handler: JSON escapes for characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{lacking[i]:02x}{lacking[i + 1]:02x}" for i in range(0, len(lacking), 2)), error.end


codecs.register_error(_ESCAPE, _escape)


class _GuardedStream(io.TextIOBase):
    """A standard stream that escapes control characters, and discards text when its reader is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        # rich writes to this attribute of a wrapped stream.
        self.rich_proxied_file = _RichStream(self, _COLOURED)
        self.for_bars = _RichStream(self, _BAR)
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors=_ESCAPE)  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        # Bars of libraries begin with \r, which overwrites only an unfinished line.
        bar = text[:1] == "\r" and self.isatty()
        self.put(("\r" if bar else "") + printable(text[bar:]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def put(self, text: str) -> None:
        """Write a text without escapes."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._lose(error)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """Discard all further text."""
        gone = isinstance(error, ValueError) or error.errno in (errno.EPIPE, errno.EIO, errno.ESHUTDOWN, errno.EBADF)  # type: ignore[attr-defined]
        if not gone and isinstance(error, OSError):
            self.lost = self.lost or error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        with suppress(OSError, ValueError):
            self._stream.flush()  # discard the buffer

    def isatty(self) -> bool:
        with suppress(ValueError):
            return self._stream.isatty()
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _RichStream(io.TextIOBase):
    """A guarded stream for rich, which lets some terminal sequences pass."""

    def __init__(self, guarded: _GuardedStream, allowed: re.Pattern[str]) -> None:
        self._guarded, self._allowed = guarded, allowed

    def write(self, text: str) -> int:
        self._guarded.put(self._allowed.sub(lambda found: found[1] or _escaped(found[0]), text))
        return len(text)

    def flush(self) -> None:
        self._guarded.flush()

    def isatty(self) -> bool:
        return self._guarded.isatty()

    def fileno(self) -> int:
        return self._guarded.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._guarded.encoding


def guard_output() -> None:
    """Wrap standard output and error, once. A closed one becomes the null device."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open while the program runs)
        if not isinstance(stream, _GuardedStream):
            setattr(sys, name, _GuardedStream(stream))


def lost_output() -> OSError | None:
    """The error that lost text printed to standard output, such as a full disk; None without one, or if the reader left."""
    if not isinstance(sys.stdout, _GuardedStream):
        return None
    sys.stdout.flush()
    return sys.stdout.lost


def stream_for_bars() -> Any:
    """Standard error, for a bar of rich."""
    return sys.stderr.for_bars if isinstance(sys.stderr, _GuardedStream) else sys.stderr


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[str] = ()) -> str:
    """A plain text table. The first column and those in ``left`` are left-aligned, the others right-aligned."""
    lines = [header, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(header))]
    align = [str.ljust if at == 0 or name in left else str.rjust for at, name in enumerate(header)]
    texts = ["  ".join(f(cell, w) for f, cell, w in zip(align, line, widths, strict=True)).rstrip() for line in lines]
    texts.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(texts)
