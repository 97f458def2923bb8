"""`mrpo score-refs`: score completions into the cache."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo score-refs recipe.yaml --engine vllm --check 64")
@takes_recipe("score-refs", needs=("references", "pairs", "policy"))
def score_refs(
    recipe: "Recipe",
    only: Annotated[
        list[str], typer.Option("--only", metavar="NAME", help="Score only this reference. May be repeated.")
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> Ending:
    """Stage one: score every completion by every reference, unless the cache already holds it."""
    from mrpo_pipeline.scoring import score_references

    reports = score_references(recipe, only=only)
    if as_json:
        print(json.dumps([report.as_dict() for report in reports], indent=1))
    return Ending(f"{recipe.cache} (the reference cache; `mrpo cache stats --cache {recipe.cache}`)", "audit")
