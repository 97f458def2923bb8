"""The `mrpo` program: environment, signals, error messages and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import time

from mrpo_cli import interrupts
from mrpo_cli.interrupts import INTERRUPTED
from mrpo_pipeline.files import python_launch
from mrpo_pipeline.terminal import guard_output, lost_output

# Variables that turn off the libraries' usage reports, unless the user has set them.
REPORTS_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# Whether this is the first of the processes that torchrun started.
IS_RANK_ZERO = os.environ.get("RANK", "0") == "0"


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 failed while running, 2 invalid input, 130 interrupted."""
    interrupts.exit_at_once()
    python_launch.forget_current_folder()
    guard_output()
    for name, value in REPORTS_OFF.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # By default OpenMP threads spin while they wait, which takes several times as long on cores shared with other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _run()
    except KeyboardInterrupt:  # raised inside one of the handlers below
        _fail_interrupted()


def _run() -> None:
    from mrpo_cli.commands import app
    from mrpo_pipeline.errors import NothingLeftError, RunError, UserError
    from mrpo_pipeline.files.disk_errors import disk_error

    interrupts.raise_keyboard_interrupt()
    try:
        app(prog_name="mrpo")
    except KeyboardInterrupt:
        _fail_interrupted()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # typer's exit code for Ctrl-C
            _fail_interrupted()
        lost = lost_output()
        if lost is not None and not leaving.code:
            _fail(
                f"mrpo: the work is done, but its output could not be written ({lost.strerror}): expected a file on a disk with room. "
                "Give another one, and run the same command again.",
                1,
            )
        interrupts.restore()
        raise
    except Exception as error:
        if interrupts.received():  # a consequence of the interrupt, here or in another process
            _fail_interrupted()
        if not isinstance(error, UserError | RunError):
            refused = disk_error(error)
            if refused is not None:
                _fail(
                    f"mrpo: a file could not be read or written ({refused}): expected a disk with room that can be read and "
                    "written. What was finished is kept. Free space or grant access there, then run the same command again.",
                    1,
                )
            interrupts.restore()
            raise
        wrong = isinstance(error, UserError) and not isinstance(error, NothingLeftError)
        if wrong and not IS_RANK_ZERO:
            # Rank 0 usually fails with the same error: let the launcher end this process before it repeats the message.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(2)
        _fail(f"mrpo: {error}", 2 if wrong else 1)


def _fail_interrupted() -> None:
    if not IS_RANK_ZERO:
        raise SystemExit(INTERRUPTED)
    _fail(f"mrpo: {interrupts.message()}", INTERRUPTED)


def _fail(message: str, code: int) -> None:
    interrupts.ignore()
    if os.environ.get("MRPO_VERBOSE") and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    print(message, file=sys.stderr)
    interrupts.restore()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
