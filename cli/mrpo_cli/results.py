"""`mrpo evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.options import METHOD, OUTPUT, PAIRS, TASKS, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


@takes_recipe(PAIRS, METHOD, OUTPUT, TASKS)
def evaluate(
    recipe: "Recipe",
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="The trained adapter; the recipe's output_dir where not given.")
    ] = None,
    tasks_only: Annotated[
        bool, typer.Option("--tasks-only", help="Leave the held-out pairs out; no cache is needed then.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a trained policy, and its start, on the held-out pairs and on downstream tasks."""
    from mrpo_pipeline.evaluation import evaluate_recipe

    result = evaluate_recipe(recipe, adapter, tasks_only=tasks_only)
    print(json.dumps(result.as_dict(), indent=1, ensure_ascii=False) if as_json else result.table())


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)
