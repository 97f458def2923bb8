"""Ctrl-C and SIGTERM (which schedulers send before they kill) end the work cleanly."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

INTERRUPTED = 130

# Seconds between repeated interrupts.
REPEAT_SECONDS = 0.1

_received = False
_advice = ""
# A shell makes background commands ignore SIGINT, which is meant for the foreground.
_in_background = False


def exit_at_once() -> None:
    """Until the command is loaded, a signal ends the process without a traceback."""
    global _in_background
    _in_background = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    _set(_exit)


def raise_keyboard_interrupt() -> None:
    """From now on, a signal raises KeyboardInterrupt in the main thread, repeatedly until it propagates.

    Python raises it wherever the thread is. In a finalizer, or in code that catches everything, it is lost, and a run that a
    scheduler has asked to end, once, would continue until it is killed.
    """
    global _received
    _received = False
    _set(_interrupt)
    default_hook = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            default_hook(lost)

    sys.unraisablehook = unraisable


def advise(option: str) -> None:
    """Set the option that an interrupted run of this command needs to resume."""
    global _advice
    _advice = f" (add {option})"


def message() -> str:
    return f"interrupted. What was finished is kept; run the same command again to resume{_advice}."


def received() -> bool:
    """Whether a signal was received."""
    return _received


def ignore() -> None:
    """Ignore further signals while the last message is printed."""
    _stop_repeating()
    _set(signal.SIG_IGN)


def restore() -> None:
    """Restore the default handlers, which end the process at once."""
    _stop_repeating()
    _set(signal.SIG_DFL)


def _set(handler: Any) -> None:
    if not _in_background:
        signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def _exit(*_: object) -> None:
    os.write(2, b"mrpo: interrupted before the command began.\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, _frame: object) -> None:
    global _received
    if not _received:
        _received = True
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.signal(signal.SIGALRM, _repeat)
            signal.setitimer(signal.ITIMER_REAL, REPEAT_SECONDS, REPEAT_SECONDS)
        raise KeyboardInterrupt
    if number == signal.SIGINT:  # a second Ctrl-C does not wait for the cleanup
        raise KeyboardInterrupt


def _repeat(*_: object) -> None:
    error = sys.exception()
    while error is not None:
        if isinstance(error, KeyboardInterrupt):  # it propagates, and cleanup is running
            return
        error = error.__context__
    raise KeyboardInterrupt


def _stop_repeating() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
