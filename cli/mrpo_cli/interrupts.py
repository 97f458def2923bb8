"""Ctrl-C, and what a scheduler sends before it kills (SIGTERM): the work ends in order, wherever it is just then."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

INTERRUPTED = 130

# Seconds between two looks at whether the interrupt arrived.
AGAIN = 0.1

_told = False
_advice = ""
# A shell that starts a command in the background lets it ignore Ctrl-C, which is meant for what runs in front.
_in_background = False


def before_work() -> None:
    """While the command itself is loaded there is nothing to keep: a signal ends it, without Python's traceback."""
    global _in_background
    _in_background = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    _set(_leave)


def from_now_on() -> None:
    """A signal raises KeyboardInterrupt in the main thread, as often as it takes until that arrives.

    Python raises it wherever the thread is, and where that is a finalizer, or code that catches everything, it is lost: a
    run that was told to end by a scheduler, once, would go on until it is killed.
    """
    global _told
    _told = False
    _set(_interrupt)
    shown = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            shown(lost)

    sys.unraisablehook = unraisable


def go_on_with(option: str) -> None:
    """An interrupted run of this command needs an option more to go on."""
    global _advice
    _advice = f" (add {option})"


def last_words() -> str:
    return f"interrupted. What was finished is kept; run the same command again to go on{_advice}."


def told_to_end() -> bool:
    """Whether a signal came."""
    return _told


def let_speak() -> None:
    """The last words are not interrupted."""
    _stop_insisting()
    _set(signal.SIG_IGN)


def done() -> None:
    """There is nothing left to do or to say: a signal ends what is left of the process at once."""
    _stop_insisting()
    _set(signal.SIG_DFL)


def _set(handler: Any) -> None:
    if not _in_background:
        signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def _leave(*_: object) -> None:
    os.write(2, b"mrpo: interrupted before the command began.\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, _frame: object) -> None:
    global _told
    if not _told:
        _told = True
        if hasattr(signal, "setitimer"):  # Windows has none
            signal.signal(signal.SIGALRM, _insist)
            signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        raise KeyboardInterrupt
    if number == signal.SIGINT:  # a person who will not wait for what is in hand
        raise KeyboardInterrupt


def _insist(*_: object) -> None:
    error = sys.exception()
    while error is not None:
        if isinstance(error, KeyboardInterrupt):  # it has arrived, and what is open is being closed
            return
        error = error.__context__
    raise KeyboardInterrupt


def _stop_insisting() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
