"""The `mrpo` command. Heavy imports sit in the commands, so that `mrpo --help` answers at once."""

from __future__ import annotations

import os
import signal
import sys
import time

import typer

from mrpo_cli import audit, cache, compare, plan, recipes, references, report, results, training

app = typer.Typer(
    name="mrpo",
    help="Multi-Reference Preference Optimization: score K references once, train with none in memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plan.register(app)
references.register(app)
audit.register(app)
training.register(app)
results.register(app)
compare.register(app)
report.register(app)
app.add_typer(cache.app, name="cache")
app.add_typer(recipes.app, name="recipes")


INTERRUPTED = 130

# Of several processes, as torchrun starts them, the first one.
FIRST = os.environ.get("RANK", "0") == "0"


def _version(value: bool) -> None:
    if value:
        import mrpo_pipeline

        print(f"mrpo {mrpo_pipeline.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show what libraries say, and tracebacks."),
) -> None:
    from mrpo_pipeline.progress import show_messages

    show_messages(verbose=verbose)
    if verbose:
        os.environ["MRPO_VERBOSE"] = "1"


def main() -> None:
    """Run the command; exit code 0 done, 1 failed while running, 2 the user's input is wrong, 130 interrupted."""
    # Nothing is sent anywhere: the libraries' usage reports are off before any of them loads.
    for name in ("HF_HUB_DISABLE_TELEMETRY", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "RAY_USAGE_STATS_DISABLED"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP's threads spin while they wait, by default; on cores shared with other work that costs several times the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mrpo_pipeline.errors import RunError, UserError

    # What a scheduler sends before it kills ends as cleanly as Ctrl-C: shards in hand are written.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        app()
    except UserError as error:
        if not FIRST:
            _let_the_first_speak()
        _fail(f"mrpo: {error}", 2)
    except RunError as error:
        _fail(f"mrpo: {error}", 1)
    except SystemExit as leaving:
        if leaving.code != INTERRUPTED or not FIRST:  # what typer makes of Ctrl-C
            raise
        _fail(
            "mrpo: interrupted. What was finished is kept; run the same command again to go on (training: add --resume).",
            INTERRUPTED,
        )
    except BrokenPipeError:
        os._exit(0)


def _let_the_first_speak() -> None:
    """Where the first process fails by the same fault, the launcher ends this one before it says it again."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(2)


def _fail(message: str, code: int) -> None:
    if os.environ.get("MRPO_VERBOSE") and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    print(message, file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
