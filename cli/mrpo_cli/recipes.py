"""`mrpo recipes`: the shipped recipes."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from mrpo_cli import closing_lines
from mrpo_cli.closing_lines import Ending
from mrpo_pipeline.errors import UserError

app = typer.Typer(
    help="List and copy the shipped recipes; list known layouts of pairs.",
    invoke_without_command=True,
    add_completion=False,
    epilog="Example:  mrpo recipes copy small",
)


@app.callback()
def list_recipes(context: typer.Context) -> None:
    """List the shipped recipes, each with its first comment line."""
    if context.invoked_subcommand is not None:
        return
    from mrpo_pipeline.recipe import shipped_recipes

    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{name:16} {first}")
    closing_lines.report(Ending(next="mrpo recipes copy small"))


@app.command("layouts", epilog="Example:  mrpo recipes layouts")
def layouts() -> None:
    """List the values of `pairs.layout` with their columns."""
    from mrpo_pipeline.pairs.layouts import AS_IS, LAYOUTS

    print(f"{'auto':28} detects one of these by its columns, else as-is")
    print(f"{AS_IS:28} prompt, chosen, rejected, or prompt, completions, and ranks or scores")
    for layout in LAYOUTS:
        print(f"{layout.name:28} {layout.about}")
    closing_lines.report(Ending(next="mrpo render RECIPE --layout NAME shows what is read of a row"))


@app.command("copy", epilog="Example:  mrpo recipes copy small my-recipe.yaml")
def copy(
    name: Annotated[str, typer.Argument(help="A name in the list of `mrpo recipes`.")],
    to: Annotated[Path, typer.Argument(help="Target file or folder.")] = Path("."),
) -> None:
    """Copy a shipped recipe for editing."""
    from mrpo_pipeline.recipe import shipped_recipes

    recipes = shipped_recipes()
    if name not in recipes:
        raise UserError(
            f"No shipped recipe is called {name!r}: expected one of {', '.join(recipes)}. Correct the name."
        )
    target = to / recipes[name].name if to.is_dir() else to
    if target.exists():
        raise UserError(f"{target} is there already: expected a new file. Give another name, or move it away.")
    try:
        shutil.copyfile(recipes[name], target)
    except OSError as error:
        raise UserError(
            f"{target} can't be written ({error.strerror}): expected a new file in a folder. Give another name."
        ) from None
    print(target)
    closing_lines.report(Ending(str(target), shlex.join(["mrpo", "plan", str(target)])))
