"""`mrpo score-refs` and `mrpo targets`: the cache filled, and what is made of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.options import ANCHOR, LOSS_KEYS, METHOD, PAIRS, SCORING, report_ignored, report_unread, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


@takes_recipe(PAIRS, ANCHOR, SCORING)
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
    overrides: dict[str, Any],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file to write (default: targets.parquet)."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train or eval.")] = "train",
    trainer: Annotated[
        str | None,
        typer.Option("--for", metavar="TRAINER", help="Write the pairs for another trainer: trl or fairseq2."),
    ] = None,
) -> None:
    """Write, per pair, what stage two trains against; for this project, or with --for for another trainer."""
    from mrpo_pipeline.policy.output_dir import check_output_file

    report_ignored(recipe, overrides)
    if trainer is None:
        report_unread(overrides, "mrpo targets (without --for)", LOSS_KEYS)
    if output is not None:
        check_output_file(output, "--output", recipe)
    if trainer is not None:
        from mrpo_pipeline.exports import export_targets

        print(export_targets(recipe, trainer, output, split=split).text())
        return
    from mrpo_pipeline.exports.parquet import write_targets

    output = output or Path("targets.parquet")
    count = write_targets(recipe, output, split=split)
    print(f"{count:,} pairs written to {output}")


def register(app: typer.Typer) -> None:
    app.command("score-refs")(score_refs)
    app.command("targets")(targets)
