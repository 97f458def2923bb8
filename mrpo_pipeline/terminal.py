"""What a person sees of long work: messages, and a bar with rate and remaining time (plain lines off a terminal)."""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TextIO

PLAIN_INTERVAL = 30.0
QUICK = 2.0


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


# Set to 1: what libraries log is shown, or nothing but warnings and errors. Processes that a command starts inherit them.
VERBOSE, QUIET = "MRPO_VERBOSE", "MRPO_QUIET"


def show_messages() -> None:
    """Show what ``mrpo`` logs on stderr, a line each: more or less of it as ``VERBOSE`` and ``QUIET`` say."""
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
    """Whether progress and messages are left out."""
    return bool(os.environ.get(QUIET))


def progress_line(text: str) -> None:
    """A line about work in progress, on stderr."""
    if not is_quiet():
        print(printable(text), file=sys.stderr, flush=True)


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
            progress_line(f"{self.what}: {self.done:,.0f} of {self.total:,.0f} {self.unit}, {rate:,.1f}/s, {left}")

    def close(self) -> None:
        seconds = time.monotonic() - self.began
        if seconds >= QUICK:
            progress_line(f"{self.what}: {self.done:,.0f} {self.unit} in {seconds:,.1f} s")


@contextmanager
def track(what: str, total: float, unit: str = "") -> Iterator[Progress]:
    """Follow work of a known size.

    Args:
        what: named at the start of the line.
        total: the size, in ``unit``.
    """
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
    """A bar that is gone when the work is done: what stays on a terminal is what a pipe gets."""
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


def one_line(said: object, most: int = 300) -> str:
    """The words of a text or an error on one line, ``most`` characters of them; … where there are more."""
    text = " ".join(str(said).split())
    return text if len(text) <= most else text[:most] + "…"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Errors still come through; what a user can act on is checked for and said by this package itself."""
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


# What moves a terminal's cursor, colours it, rings its bell, or turns the direction of text; but line feeds and tabs.
_CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
_TEXT = re.compile(_CONTROLS)
# Rich's own, in help and errors: colours. In bars: also the line erased, the cursor up or hidden, and the line's start.
_COLOURED = re.compile(rf"(\x1b\[[0-9;]*m)|{_CONTROLS}")
_BAR = re.compile(rf"(\x1b\[(?:[0-9;]*m|[0-9]*A|2K|\?25[lh])|\r)|{_CONTROLS}")

_ESCAPE = "mrpo-escape"


def printable(text: str) -> str:
    """The text with control characters written out, but for line feeds and tabs; text directions too."""
    return _TEXT.sub(lambda found: _written(found[0]), text)


def _written(character: str) -> str:
    return ascii(character)[1:-1] if character < "\x20" else f"\\u{ord(character):04x}"


def _escape(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks, as JSON writes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{lacking[i]:02x}{lacking[i + 1]:02x}" for i in range(0, len(lacking), 2)), error.end


codecs.register_error(_ESCAPE, _escape)


class _Edge(io.TextIOBase):
    """A standard stream that writes printable text, and goes quiet when its reader is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        # Where rich looks for the stream behind one that stands in its place.
        self.rich_proxied_file = _Allowing(self, _COLOURED)
        self.for_bars = _Allowing(self, _BAR)
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors=_ESCAPE)  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        # Bars of libraries begin with the line's start, which overwrites nothing but a line that is not ended.
        bar = text[:1] == "\r" and self.isatty()
        self.put(("\r" if bar else "") + printable(text[bar:]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def put(self, text: str) -> None:
        """Write a text as it is."""
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
        """From now on what is written goes nowhere."""
        gone = isinstance(error, ValueError) or error.errno in (errno.EPIPE, errno.EIO, errno.ESHUTDOWN, errno.EBADF)  # type: ignore[attr-defined]
        if not gone and isinstance(error, OSError):
            self.lost = self.lost or error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        with suppress(OSError, ValueError):
            self._stream.flush()  # what is still in its buffer

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


class _Allowing(io.TextIOBase):
    """The same stream for rich: some sequences of a terminal pass."""

    def __init__(self, edge: _Edge, allowed: re.Pattern[str]) -> None:
        self._edge, self._allowed = edge, allowed

    def write(self, text: str) -> int:
        self._edge.put(self._allowed.sub(lambda found: found[1] or _written(found[0]), text))
        return len(text)

    def flush(self) -> None:
        self._edge.flush()

    def isatty(self) -> bool:
        return self._edge.isatty()

    def fileno(self) -> int:
        return self._edge.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._edge.encoding


def guard_output() -> None:
    """Put standard output and error behind the edge, once; where one is closed, what is written to it goes nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the program runs)
        if not isinstance(stream, _Edge):
            setattr(sys, name, _Edge(stream))


def lost_output() -> OSError | None:
    """Why what was printed to standard output did not arrive, a full disk say; None where it did, or its reader left."""
    if not isinstance(sys.stdout, _Edge):
        return None
    sys.stdout.flush()
    return sys.stdout.lost


def stream_for_bars() -> Any:
    """Standard error, for a bar of rich."""
    return sys.stderr.for_bars if isinstance(sys.stderr, _Edge) else sys.stderr
