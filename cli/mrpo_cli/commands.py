"""The `mrpo` command and its subcommands. Heavy imports sit in the commands, so that `mrpo --help` answers at once."""

from __future__ import annotations

import os

import typer

from mrpo_cli import audit, cache, compare, plan, recipes, references, render, report, results, training

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
render.register(app)
audit.register(app)
training.register(app)
results.register(app)
compare.register(app)
report.register(app)
app.add_typer(cache.app, name="cache")
app.add_typer(recipes.app, name="recipes")


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
    from mrpo_pipeline.terminal import show_messages

    show_messages(verbose=verbose)
    if verbose:
        os.environ["MRPO_VERBOSE"] = "1"
