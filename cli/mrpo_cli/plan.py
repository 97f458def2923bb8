"""`mrpo plan`: estimate the cost of a run."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import takes_recipe
from mrpo_pipeline.errors import RunError

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo plan recipe.yaml --gpu h100 --gpus 4")
@takes_recipe("plan", needs=("target", "policy", "pairs"))
def plan(
    recipe: "Recipe",
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="GPU for hours and memory (h100, a100, rtx4090, …); none: no hours. Default: this machine's GPU, else its CPU.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", help="Number of GPUs that share the work.")] = 1,
    efficiency: Annotated[
        float | None,
        typer.Option(
            "--efficiency",
            metavar="SHARE",
            help="Share of the peak speed that is reached. Default: 0.4 of a GPU, 0.55 of a CPU.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Tokenize every pair instead of a sample.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> Ending:
    """Estimate tokens, cache size, memory and hours of a run. Loads no weights."""
    from mrpo_pipeline.plan import plan_run

    found = plan_run(recipe, gpu=gpu, gpus=gpus, efficiency=efficiency, exact=exact)
    print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else found.table())
    if not found.pairs_left:
        why = ". ".join(found.short_contexts) or "The references' chat templates can't render the completions"
        raise RunError(f"No pair is left that every reference can score. {why}.")
    return Ending(next="score-refs" if found.references else "train")
