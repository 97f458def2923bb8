"""`mrpo render`: what each model reads of a row, token by token."""

import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.options import PAIRS, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


@takes_recipe(PAIRS)
def render(
    recipe: "Recipe",
    chosen_references: list[str],
    row: Annotated[int, typer.Option("--row", metavar="N", min=0, help="The row of the file, from 0.")] = 0,
    ids: Annotated[bool, typer.Option("--ids", help="One token a line, with its id.")] = False,
    color: Annotated[
        bool | None, typer.Option("--color/--no-color", help="Colours; on a terminal by default.", show_default=False)
    ] = None,
) -> None:
    """What each model reads of a row: the prompt, what is scored, and what is not. Loads no weights.

    `--reference NAME` shows that reference alone (`policy` for the policy).
    """
    from mrpo_pipeline.dataset.show_row import show_row

    if color is None:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size((80, 24)).columns
    for line in show_row(recipe, row, chosen_references, width=width, color=color, ids=ids):
        print(line)


def register(app: typer.Typer) -> None:
    app.command("render")(render)
