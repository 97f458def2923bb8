"""`mrpo audit`: how well the cached references rank these pairs, and which look broken."""

import json
import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import report_unread, takes_recipe
from mrpo_cli.recipe_options import LOSS

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)

# Line length in a pipe or file, and the most on a terminal.
MAX_WIDTH = 100


@app.command(epilog="Example:  mrpo audit recipe.yaml --strict")
@takes_recipe("audit", needs=("references", "pairs"))
def audit(
    recipe: "Recipe",
    overrides: dict[str, Any],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 if a reference looks broken.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the audit as JSON.")] = False,
) -> Ending:
    """How well the cached references rank these pairs, and which look broken. Loads no model.

    The exit code is 0 despite findings, unless --strict is set.
    """
    from mrpo_pipeline.audit import audit_recipe
    from mrpo_pipeline.errors import RunError

    keys = [option.key for option in LOSS]
    report_unread(overrides, "mrpo audit", [*keys, "method.name", "method.aggregate", "method.weights"])
    found = audit_recipe(recipe)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
    else:
        print(found.table(min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)))
    if strict and found.broken:
        raise RunError(
            f"{len(found.broken)} of {len(found.references)} references look broken: {', '.join(found.broken)}."
        )
    return Ending(next="train")
