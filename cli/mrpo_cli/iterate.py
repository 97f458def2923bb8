"""`mrpo iterate`: rounds of training, each against the last round's policy."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import report_ignored, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo iterate recipe.yaml --rounds 3 --output-dir rounds")
@takes_recipe("iterate", needs=("references", "pairs", "policy"))
def iterate(
    recipe: "Recipe",
    overrides: dict[str, Any],
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Number of rounds.")] = 3,
) -> Ending:
    """Train in rounds: each one scores the last round's policy as the new anchor, and trains on from it.

    The other references stay. A killed command, or one with more rounds, resumes: nothing is scored or trained twice. Each
    round leaves in OUTPUT/round-N what `mrpo train` leaves.
    """
    report_ignored(recipe, overrides)
    from mrpo_pipeline.iterate import iterate_recipe, rounds_table

    done = iterate_recipe(recipe, rounds)
    print(rounds_table(done))
    last = str(done[-1].folder)
    return Ending(
        f"{Path(recipe.output_dir)}/round-1 … round-{rounds} (a PEFT adapter each, with its recipe.yaml and figures)",
        shlex.join(["mrpo", "merge", last, "--output", "merged"]),
    )
