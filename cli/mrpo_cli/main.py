"""The `mrpo` program: what is set before anything loads, and how a command ends."""

from __future__ import annotations

import os
import signal
import sys
import time

from mrpo_cli import interrupts
from mrpo_cli.interrupts import INTERRUPTED
from mrpo_pipeline.files import python_processes
from mrpo_pipeline.terminal import guard_output, lost_output

# The switches by which libraries send no usage reports. Whoever has set one keeps it.
REPORTS_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# Of several processes, as torchrun starts them, the first one.
FIRST = os.environ.get("RANK", "0") == "0"


def main() -> None:
    """Run the command; exit code 0 done, 1 failed while running, 2 the user's input is wrong, 130 interrupted."""
    interrupts.before_work()
    python_processes.forget_current_folder()
    guard_output()
    # Nothing is sent anywhere: the libraries' usage reports are off before any of them loads.
    for name, value in REPORTS_OFF.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP's threads spin while they wait, by default; on cores shared with other work that costs several times the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _run()
    except KeyboardInterrupt:  # between two lines of what catches it below
        _say_interrupted()


def _run() -> None:
    from mrpo_cli.commands import app
    from mrpo_pipeline.errors import NothingLeftError, RunError, UserError
    from mrpo_pipeline.files.disk_errors import refusal

    # What a scheduler sends before it kills ends as cleanly as Ctrl-C: shards in hand are written.
    interrupts.from_now_on()
    try:
        app(prog_name="mrpo")
    except KeyboardInterrupt:
        _say_interrupted()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # what typer makes of Ctrl-C
            _say_interrupted()
        lost = lost_output()
        if lost is not None and not leaving.code:
            _fail(
                f"mrpo: the work is done, and what it printed could not be written ({lost.strerror}): expected a file with room. Give "
                "another one, and run the same command again.",
                1,
            )
        interrupts.done()
        raise
    except Exception as error:
        if interrupts.told_to_end():  # what it became on its way, or what another process made of the same signal
            _say_interrupted()
        if not isinstance(error, UserError | RunError):
            refused = refusal(error)
            if refused is not None:
                _fail(
                    f"mrpo: a file could not be read or written ({refused}): expected a disk with room that can be read and "
                    "written. What was finished is kept. Make room or give access there, then run the same command again.",
                    1,
                )
            interrupts.done()
            raise
        wrong = isinstance(error, UserError) and not isinstance(error, NothingLeftError)
        if wrong and not FIRST:
            _let_the_first_speak()
        _fail(f"mrpo: {error}", 2 if wrong else 1)


def _say_interrupted() -> None:
    if not FIRST:
        raise SystemExit(INTERRUPTED)
    _fail(f"mrpo: {interrupts.last_words()}", INTERRUPTED)


def _let_the_first_speak() -> None:
    """Where the first process fails by the same fault, the launcher ends this one before it says it again."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(2)


def _fail(message: str, code: int) -> None:
    interrupts.let_speak()
    if os.environ.get("MRPO_VERBOSE") and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    print(message, file=sys.stderr)
    interrupts.done()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
