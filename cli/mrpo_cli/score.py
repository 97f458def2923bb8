"""`mrpo score-refs`: the cache filled."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.ending import Ending
from mrpo_cli.recipe_command import takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo score-refs recipe.yaml --engine vllm --check 64")
@takes_recipe("score-refs", needs=("references", "pairs", "policy"))
def score_refs(
    recipe: "Recipe",
    only: Annotated[list[str], typer.Option("--only", metavar="NAME", help="Score this reference only.")] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> Ending:
    """Stage one: score every completion by every reference, where the cache cannot serve it yet."""
    from mrpo_pipeline.scoring import score_references

    reports = score_references(recipe, only=only)
    if as_json:
        print(json.dumps([report.as_dict() for report in reports], indent=1))
    return Ending(f"{recipe.cache} (the reference cache; `mrpo cache stats --cache {recipe.cache}`)", "audit")
