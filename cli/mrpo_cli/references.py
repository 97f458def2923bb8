"""`mrpo score-refs` and `mrpo targets`: the cache filled, and what is made of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.options import METHOD, PAIRS, SCORING, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


@takes_recipe(PAIRS, SCORING)
def score_refs(
    recipe: "Recipe",
    only: Annotated[list[str], typer.Option("--only", metavar="NAME", help="Score this reference only.")] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Stage one: score every completion by every reference, where the cache cannot serve it yet."""
    from mrpo_pipeline.scoring import score_references

    reports = score_references(recipe, only=only)
    if as_json:
        print(json.dumps([report.as_dict() for report in reports], indent=1))


@takes_recipe(PAIRS, METHOD)
def targets(
    recipe: "Recipe",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.parquet", help="The file to write.")] = Path(
        "targets.parquet"
    ),
    split: Annotated[str, typer.Option("--split", help="train or eval.")] = "train",
) -> None:
    """Write, per pair, what stage two trains against."""
    from mrpo_pipeline.targets_file import write_targets

    count = write_targets(recipe, output, split=split)
    print(f"{count:,} pairs written to {output}")


def register(app: typer.Typer) -> None:
    app.command("score-refs")(score_refs)
    app.command("targets")(targets)
