"""`mrpo compare`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.options import COMPARE, METHOD, OUTPUT, PAIRS, TRAINING, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


@takes_recipe(COMPARE, PAIRS, METHOD, TRAINING, OUTPUT)
def compare(
    recipe: "Recipe",
    as_json: Annotated[bool, typer.Option("--json", help="Print comparison.json.")] = False,
) -> None:
    """Train and evaluate several methods and seeds on one cache, side by side.

    DPO against each single reference is always among them, and the verdict says whether several references do better.
    """
    from mrpo_pipeline.compare import compare_recipe

    comparison = compare_recipe(recipe)
    if as_json:
        print(json.dumps(comparison.as_dict(), indent=1, ensure_ascii=False))
        return
    print(comparison.table())
    print(f"\nThe report: {comparison.folder / 'report.html'}; tables, figures and runs lie beside it.")


def register(app: typer.Typer) -> None:
    app.command("compare")(compare)
