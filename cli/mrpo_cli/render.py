"""`mrpo render`: show what each model reads of a row, token by token."""

import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo render recipe.yaml --row 3 --reference big")
@takes_recipe("render", needs=("pairs",))
def render(
    recipe: "Recipe",
    chosen_references: list[str],
    row: Annotated[int, typer.Option("--row", metavar="N", min=0, help="Row of the file, from 0.")] = 0,
    ids: Annotated[bool, typer.Option("--ids", help="Print one token per line with its id.")] = False,
    color: Annotated[
        bool | None, typer.Option("--color/--no-color", help="Use colours. Default: on a terminal.", show_default=False)
    ] = None,
) -> Ending:
    """Show what each model reads of a row: the prompt, the scored tokens and the others. Loads no weights.

    `--reference NAME` shows only that reference (`policy` for the policy).
    """
    from mrpo_pipeline.dataset.rendered_row import show_row

    if color is None:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size((80, 24)).columns
    for line in show_row(recipe, row, chosen_references, width=width, color=color, ids=ids):
        print(line)
    return Ending(next="score-refs")
