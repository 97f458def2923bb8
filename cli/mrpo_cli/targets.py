"""`mrpo targets`: what stage two trains against, as a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.ending import Ending
from mrpo_cli.options import LOSS
from mrpo_cli.recipe_command import report_ignored, report_unread, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo targets recipe.yaml --output targets.parquet")
@takes_recipe("targets", needs=("references", "pairs"))
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
        typer.Option("--for", metavar="TRAINER", help="Write the pairs for another trainer: trl."),
    ] = None,
) -> Ending:
    """Write, per pair, what stage two trains against; for this project, or with --for for another trainer."""
    report_ignored(recipe, overrides)
    if trainer is None:
        report_unread(overrides, "mrpo targets (without --for)", [option.key for option in LOSS])
    from mrpo_pipeline.policy.output_dir import check_output_file

    if output is not None:
        check_output_file(output, "--output", recipe)
    if trainer is not None:
        from mrpo_pipeline.exports import export_targets

        print(export_targets(recipe, trainer, output, split=split).text())
        return Ending()
    from mrpo_pipeline.exports.parquet import write_targets

    output = output or Path("targets.parquet")
    count = write_targets(recipe, output, split=split)
    print(f"{count:,} pairs written to {output}")
    return Ending(str(output), "train")
