"""The `mrpo` command. A subcommand's module is imported when it is called, so that `mrpo --help` answers at once."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from mrpo_cli import verbosity


class Listed(NamedTuple):
    """A subcommand in the help: its module, the panel, and what it does."""

    module: str
    panel: str
    about: str


RUN, LOOK, AFTER = "The pipeline, in this order", "Looking into a run", "What a run leaves"
COMMANDS = {
    "demo": Listed("demo", RUN, "See all of it on three tiny models that are made here: some minutes, no GPU."),
    "recipes": Listed("recipes", RUN, "The recipes that ship: list them, copy one; known layouts of pairs."),
    "plan": Listed("plan", RUN, "What a run takes: tokens, cache, memory, hours. Loads no weights."),
    "score-refs": Listed("score", RUN, "Stage one: score every completion by every reference, into the cache."),
    "audit": Listed("audit", RUN, "What the cached references are worth on these pairs, and which look broken."),
    "train": Listed("train", RUN, "Stage two: train the policy with LoRA against the cached references."),
    "evaluate": Listed("evaluate", RUN, "Measure a trained policy and its start, on held-out pairs and on tasks."),
    "compare": Listed("compare", RUN, "Train and evaluate several methods and seeds on one cache, with a report."),
    "render": Listed("render", LOOK, "What each model reads of a row, token by token."),
    "cache": Listed("cache", LOOK, "The reference cache: list, stats, verify, prune."),
    "targets": Listed("targets", LOOK, "Write what stage two trains against, also for another trainer."),
    "report": Listed("report", AFTER, "Write a comparison's report again, from its folder."),
    "merge": Listed("merge", AFTER, "Adapter and base as one plain checkpoint."),
}


class LazyGroup(TyperGroup):
    """Subcommands by name; in a list of them, their names and one line of help alone."""

    _listing = False

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment] # typer suggests from their names

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
            # A line break in a docstring is none in the help.
            one.help = "\n\n".join(" ".join(part.split()) for part in (one.help or "").split("\n\n"))
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with self._names_alone():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        with self._names_alone():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _names_alone(self) -> Iterator[None]:
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
