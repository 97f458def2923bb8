"""`mrpo targets`: write the training targets of stage two, as a file or a published data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import report_ignored, report_unread, takes_recipe
from mrpo_cli.recipe_options import LOSS, PRIVATE, SPLIT
from mrpo_pipeline.errors import UserError

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo targets recipe.yaml --for trl --output hf://datasets/org/name")
@takes_recipe("targets", needs=("references", "pairs"))
def targets(
    recipe: "Recipe",
    overrides: dict[str, Any],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write; with --for also a folder, an object store's URL or hf://datasets/ORG/NAME, with a card.",
        ),
    ] = "targets.parquet",
    split: Annotated[str | None, SPLIT] = None,
    trainer: Annotated[
        str | None,
        typer.Option("--for", metavar="TRAINER", help="Write pairs with targets for another trainer: trl."),
    ] = None,
    private: Annotated[bool, PRIVATE] = False,
) -> Ending:
    """Write the training targets of each pair as Parquet, or with --for in the format of another trainer."""
    report_ignored(recipe, overrides)
    if trainer is None:
        report_unread(overrides, "mrpo targets (without --for)", [option.key for option in LOSS])
        return _write(recipe, output, split, private)
    from mrpo_pipeline.exports import export_targets, is_place, publish_targets

    if is_place(output):
        done = publish_targets(recipe, trainer, output, splits=[split] if split else (), private=private)
        print(done.text())
        return Ending(output)
    _check_file(recipe, output, private)
    print(export_targets(recipe, trainer, Path(output), split=split or "train").text())
    return Ending()


def _write(recipe: "Recipe", output: str, split: str | None, private: bool) -> Ending:
    from mrpo_pipeline.exports.targets_file import write_targets

    _check_file(recipe, output, private)
    count = write_targets(recipe, Path(output), split=split or "train")
    print(f"{count:,} pairs written to {output}")
    return Ending(output, "train")


def _check_file(recipe: "Recipe", output: str, private: bool) -> None:
    from mrpo_pipeline.policy.output_dir import check_output_file

    if private or "://" in output:
        what = "--private" if private else f"--output {output}"
        raise UserError(
            f"{what} is for a published data set: expected --for trl and a data set's place with it. Give a file, or publish."
        )
    check_output_file(Path(output), "--output", recipe)
