"""`mrpo evaluate` and `mrpo compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.options import METHOD, OUTPUT, PAIRS, TRAINING, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


@takes_recipe(PAIRS, METHOD, OUTPUT)
def evaluate(
    recipe: "Recipe",
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="The trained adapter; the recipe's output_dir where not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a trained policy, and its start, on the held-out pairs."""
    from mrpo_pipeline.evaluation import evaluate_recipe

    result = evaluate_recipe(recipe, adapter)
    print(json.dumps(result.as_dict(), indent=1, ensure_ascii=False) if as_json else result.table())


@takes_recipe(PAIRS, METHOD, TRAINING, OUTPUT)
def compare(
    recipe: "Recipe",
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="The seeds, in place of the recipe's.")
    ] = None,
) -> None:
    """Train and evaluate several methods and seeds on one cache, side by side."""
    from mrpo_pipeline.compare import compare_recipe
    from mrpo_pipeline.recipe import parse_recipe

    if seeds is not None:
        document = recipe.model_dump(mode="python")
        document["compare"]["seeds"] = [part.strip() for part in seeds.split(",")]
        recipe = parse_recipe(document, "--seeds")
    comparison = compare_recipe(recipe)
    print(comparison.table())
    print(f"Table, figures and plot lie in {comparison.folder}")


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)
    app.command("compare")(compare)
