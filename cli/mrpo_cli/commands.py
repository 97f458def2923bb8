"""The `mrpo` command. A subcommand's module is imported only when it is called, so that `mrpo --help` is fast."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from mrpo_cli import verbosity


class Listed(NamedTuple):
    """A subcommand in the help: its module, its panel, and one line on it."""

    module: str
    panel: str
    about: str


RUN, INSPECT, RESULTS = "The pipeline, in this order", "Inspect a run", "Use the results"
COMMANDS = {
    "demo": Listed("demo", RUN, "Run all steps on three tiny models: a few minutes, no GPU."),
    "recipes": Listed("recipes", RUN, "List and copy the shipped recipes; list known layouts of pairs."),
    "plan": Listed("plan", RUN, "Estimate tokens, cache size, memory and hours. Loads no weights."),
    "score-refs": Listed("score", RUN, "Stage one: score every completion by every reference, into the cache."),
    "audit": Listed("audit", RUN, "Check how well the references rank these pairs, and find broken ones."),
    "train": Listed("train", RUN, "Stage two: train the policy with LoRA against the cached references."),
    "evaluate": Listed("evaluate", RUN, "Evaluate a trained policy and its start, on held-out pairs and on tasks."),
    "compare": Listed("compare", RUN, "Train and evaluate several methods and seeds on one cache, with a report."),
    "iterate": Listed("iterate", RUN, "Train in rounds: each trained policy becomes the next round's anchor."),
    "render": Listed("render", INSPECT, "Show what each model reads of a row, token by token."),
    "cache": Listed("cache", INSPECT, "Manage the reference cache: stats, verify, prune, push, pull, and more."),
    "targets": Listed("targets", INSPECT, "Write the training targets to a file, also for another trainer."),
    "select": Listed("select", INSPECT, "Score pairs by the cache: which to keep, label again, read or drop."),
    "report": Listed("report", RESULTS, "Write a comparison's report again from its folder."),
    "merge": Listed("merge", RESULTS, "Merge an adapter into its base as one plain checkpoint."),
}


class LazyGroup(TyperGroup):
    """Subcommands by name. Listing them imports none: each has one line of help in ``COMMANDS``."""

    _listing = False

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment] # for typer's suggestions

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        listed = COMMANDS.get(cmd_name)
        if listed is None:
            return None
        if self._listing:
            return TyperCommand(cmd_name, callback=None, help=listed.about, rich_help_panel=listed.panel)
        command = typer.main.get_command(importlib.import_module(f"mrpo_cli.{listed.module}").app)
        command.name = cmd_name
        shared = [param for param in self.params if param.name in verbosity.NAMES]
        for one in (command, *getattr(command, "commands", {}).values()):
            one.params = [*one.params, *shared]
            # Docstrings are wrapped: join the lines of each paragraph.
            one.help = "\n\n".join(" ".join(part.split()) for part in (one.help or "").split("\n\n"))
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with self._without_imports():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        with self._without_imports():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _without_imports(self) -> Iterator[None]:
        self._listing = True
        try:
            yield
        finally:
            self._listing = False


app = typer.Typer(
    name="mrpo",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  mrpo score-refs recipe.yaml && mrpo train recipe.yaml --beta 0.2",
)


def _version(value: bool) -> None:
    if value:
        import mrpo_pipeline

        print(f"mrpo {mrpo_pipeline.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    verbose: bool = verbosity.Verbose,
    quiet: bool = verbosity.Quiet,
) -> None:
    """Multi-Reference Preference Optimization: score K references once, train with none in memory."""
    from mrpo_pipeline.terminal import show_messages

    show_messages()
