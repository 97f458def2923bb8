"""`mrpo audit`: what the cached references are worth on these pairs, before any training."""

import json
import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.ending import Ending
from mrpo_cli.options import LOSS
from mrpo_cli.recipe_command import report_unread, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)

# Sentences are hard to read in longer lines; and what a pipe or a file gets.
WIDEST = 100


@app.command(epilog="Example:  mrpo audit recipe.yaml --strict")
@takes_recipe("audit", needs=("references", "pairs"))
def audit(
    recipe: "Recipe",
    overrides: dict[str, Any],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a reference looks broken.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the audit as JSON.")] = False,
) -> Ending:
    """What the cached references are worth on these pairs, and which of them look broken. Loads no model.

    Findings do not fail the command: its exit code is 0 all the same, but for --strict.
    """
    from mrpo_pipeline.audit import audit_recipe
    from mrpo_pipeline.errors import RunError

    keys = [option.key for option in LOSS]
    report_unread(overrides, "mrpo audit", [*keys, "method.name", "method.aggregate", "method.weights"])
    found = audit_recipe(recipe)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
    else:
        print(found.table(min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)))
    if strict and found.broken:
        raise RunError(
            f"{len(found.broken)} of {len(found.references)} references look broken: {', '.join(found.broken)}."
        )
    return Ending(next="train")
