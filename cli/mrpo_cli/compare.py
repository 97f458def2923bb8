"""`mrpo compare`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.options import METHOD, OUTPUT, PAIRS, TRAINING, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


@takes_recipe(PAIRS, METHOD, TRAINING, OUTPUT)
def compare(
    recipe: "Recipe",
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="The seeds, in place of the recipe's.")
    ] = None,
    processes: Annotated[
        str | None,
        typer.Option("--processes", metavar="auto|N", help="Runs at a time: auto for what the machine carries."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print comparison.json.")] = False,
) -> None:
    """Train and evaluate several methods and seeds on one cache, side by side.

    DPO against each single reference is always among them, and the verdict says whether several references do better.
    """
    from mrpo_pipeline.compare import compare_recipe
    from mrpo_pipeline.recipe import parse_recipe, parse_value

    document = recipe.model_dump(mode="python")
    if seeds is not None:
        document["compare"]["seeds"] = [parse_value(part.strip()) for part in seeds.split(",")]
    if processes is not None:
        document["compare"]["processes"] = parse_value(processes)
    if seeds is not None or processes is not None:
        recipe = parse_recipe(document, "the recipe with --seeds and --processes")
    comparison = compare_recipe(recipe)
    if as_json:
        print(json.dumps(comparison.as_dict(), indent=1, ensure_ascii=False))
        return
    print(comparison.table())
    print(f"\nThe report: {comparison.folder / 'report.html'}; tables, figures and runs lie beside it.")


def register(app: typer.Typer) -> None:
    app.command("compare")(compare)
