"""`mrpo select`: score pairs by the cached references, and write those to keep, label again, read or drop."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import report_ignored, takes_recipe
from mrpo_cli.recipe_options import SPLIT

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo select recipe.yaml --advice keep --output keep.jsonl")
@takes_recipe("select", needs=("references", "pairs"))
def select(
    recipe: "Recipe",
    overrides: dict[str, Any],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Parquet or JSON lines, by the suffix.")
    ] = Path("selection.parquet"),
    split: Annotated[str, SPLIT] = "train",
    advice: Annotated[
        list[str],
        typer.Option(
            "--advice", help="Write only these: keep, label, read or drop. May be repeated.", show_default=False
        ),
    ] = [],  # noqa: B006
    by: Annotated[
        str | None,
        typer.Option("--by", help="Sort by certainty, disagreement or margin, highest first.", show_default=False),
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", metavar="N", min=1, help="Write at most N pairs.", show_default=False)
    ] = None,
) -> Ending:
    """Score and sort pairs by the cached references: certain ones, disputed ones, those that all rank wrongly, near copies."""
    report_ignored(recipe, overrides)
    from mrpo_pipeline.exports.pair_advice import ADVICE, write_selection
    from mrpo_pipeline.policy.output_dir import check_output_file

    check_output_file(output, "--output", recipe)
    counts = write_selection(recipe, output, split=split, advice=advice or ADVICE, order=by, count=top)
    meaning = {
        "keep": "train on them",
        "label": "the references disagree, and the mixture is undecided",
        "read": "every reference prefers the rejected side",
        "drop": "near copies of earlier pairs",
    }
    for name, count in counts.items():
        print(f"{name:6}{count:9,}  {meaning[name]}")
    return Ending(str(output))
