"""`mrpo evaluate`."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.ending import Ending
from mrpo_cli.options import TASKS
from mrpo_cli.recipe_command import report_unread, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


def _beside_the_adapter(given: Mapping[str, Any]) -> Path | None:
    """The recipe that an adapter was trained with, where the command names no model itself."""
    if given["adapter"] is None or given["model"] is not None:
        return None
    path: Path = given["adapter"] / "recipe.yaml"
    return path if path.is_file() else None


@app.command(epilog="Example:  mrpo evaluate --adapter out --tasks gsm8k")
@takes_recipe("evaluate", default_recipe=_beside_the_adapter)
def evaluate(
    recipe: "Recipe",
    overrides: dict[str, Any],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="The trained adapter; the recipe's output_dir where not given.")
    ] = None,
    tasks_only: Annotated[
        bool, typer.Option("--tasks-only", help="Leave the held-out pairs out; no cache is needed then.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Ending:
    """Measure a trained policy, and its start, on the held-out pairs and on downstream tasks.

    The method is the one that the adapter was trained with (the recipe.yaml beside it); that recipe is also the one used where
    neither a recipe nor --model is given. Results go into the adapter's folder, or with --adapter into --output-dir.
    """
    from mrpo_pipeline.policy.adapter_folder import require_adapter

    folder = require_adapter(Path(recipe.output_dir) if adapter is None else adapter)
    from mrpo_pipeline.evaluation import evaluate_recipe

    output_dir = Path(recipe.output_dir) if "output_dir" in overrides and adapter is not None else None
    if not recipe.evaluation.tasks:
        report_unread(overrides, "a run without --tasks", [option.key for option in TASKS])
    result = evaluate_recipe(recipe, adapter, tasks_only=tasks_only, output_dir=output_dir, given=overrides)
    print(json.dumps(result.as_dict(), indent=1, ensure_ascii=False) if as_json else result.table())
    return Ending(
        str(Path(result.folder) / "evaluation.json"), shlex.join(["mrpo", "merge", str(folder), "--output", "merged"])
    )
