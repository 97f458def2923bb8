"""`-v` and `-q`, before or after the command's name."""

from __future__ import annotations

import os

import typer

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.terminal import QUIET, VERBOSE, show_messages

NAMES = ("verbose", "quiet")


def _verbose(value: bool) -> None:
    _set(VERBOSE if value else None)


def _quiet(value: bool) -> None:
    _set(QUIET if value else None)
    if value:  # huggingface_hub reads this when it is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _set(variable: str | None) -> None:
    """Set the variable, which child processes inherit."""
    if variable is None:
        return
    os.environ[variable] = "1"
    if os.environ.get(VERBOSE) and os.environ.get(QUIET):
        raise UserError("Both --verbose and --quiet are given: expected one of them. Take one out.")
    show_messages()


Verbose: bool = typer.Option(
    False,
    "--verbose",
    "-v",
    callback=_verbose,
    is_eager=True,
    expose_value=False,
    help="Show what libraries log, and tracebacks.",
)
Quiet: bool = typer.Option(
    False,
    "--quiet",
    "-q",
    callback=_quiet,
    is_eager=True,
    expose_value=False,
    help="Print only results, warnings and errors.",
)
