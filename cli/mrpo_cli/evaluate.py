"""`mrpo evaluate`."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import report_unread, takes_recipe
from mrpo_cli.recipe_options import TASKS

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


def _beside_the_adapter(given: Mapping[str, Any]) -> Path | None:
    """The recipe that the adapter was trained with, unless the command line names a model."""
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
        Path | None,
        typer.Option("--adapter", help="The trained adapter. Default: the recipe's output_dir.", show_default=False),
    ] = None,
    tasks_only: Annotated[bool, typer.Option("--tasks-only", help="Skip the held-out pairs. Needs no cache.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Ending:
    """Evaluate a trained policy and its start on the held-out pairs and on downstream tasks.

    The method is that of the recipe.yaml beside the adapter, which is also the default recipe if --model is not given. Results are
    written to the adapter's folder, or with --adapter to --output-dir.
    """
    from mrpo_pipeline.policy.require_adapter import require_adapter

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
