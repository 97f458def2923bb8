"""`mrpo compare`."""

import json
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import report_ignored, takes_recipe
from mrpo_pipeline.errors import UserError

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

log = logging.getLogger("mrpo")
app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo compare recipe.yaml --seeds 0,1,2 --output-dir side-by-side")
@takes_recipe("compare", needs=("references", "pairs", "policy"))
def compare(
    recipe: "Recipe",
    overrides: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print comparison.json.")] = False,
) -> Ending:
    """Train and evaluate several methods and seeds on one cache.

    This always includes DPO against each single reference and training without a reference. The verdict states whether several
    references are better.
    """
    from mrpo_pipeline.compare import compare_recipe, contenders
    from mrpo_pipeline.recipe import TRAINING_DEFAULTS

    if "training.seed" in overrides:
        seed = overrides["training.seed"]
        raise UserError(
            f"--seed is {seed}: mrpo compare trains with the seeds of compare.seeds ({_seeds(recipe)}), and training.seed has no "
            f"effect. Expected --seeds. Give --seeds {seed}."
        )
    report_ignored(recipe, overrides, [one.method for one in contenders(recipe)])
    if recipe.training["seed"] not in (TRAINING_DEFAULTS["seed"], *recipe.compare.seeds):
        log.warning(
            "training.seed (%s) has no effect: compare.seeds (%s) decides.", recipe.training["seed"], _seeds(recipe)
        )
    comparison = compare_recipe(recipe)
    print(json.dumps(comparison.as_dict(), indent=1, ensure_ascii=False) if as_json else comparison.table())
    report = comparison.folder / "report.html"
    return Ending(
        f"{report}; tables, figures and runs are beside it",
        f"open {report} in a browser; mrpo merge {comparison.folder}/METHOD/seed-N --output DIR makes one run a checkpoint",
    )


def _seeds(recipe: "Recipe") -> str:
    return ",".join(map(str, recipe.compare.seeds))
