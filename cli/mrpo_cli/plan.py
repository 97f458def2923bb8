"""`mrpo plan`: what a run would cost, before anything is paid for."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli.ending import Ending
from mrpo_cli.recipe_command import takes_recipe
from mrpo_pipeline.errors import RunError

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo plan recipe.yaml --gpu h100 --gpus 4")
@takes_recipe("plan", needs=("references", "policy", "pairs"))
def plan(
    recipe: "Recipe",
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="Hours and memory for this GPU (h100, a100, rtx4090, …); none: no hours. This machine's GPU or CPU where not given.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", help="So many GPUs share the work.")] = 1,
    efficiency: Annotated[
        float | None,
        typer.Option(
            "--efficiency",
            metavar="SHARE",
            help="The share of the GPU's peak (0.4 where not given) or of the CPU's measured speed that is reached.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Tokenize every pair, however many there are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> Ending:
    """What would be scored and trained, and what that takes: tokens, cache, memory, hours. Loads no weights."""
    from mrpo_pipeline.plan import plan_run

    found = plan_run(recipe, gpu=gpu, gpus=gpus, efficiency=efficiency, exact=exact)
    print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else found.table())
    if not found.pairs_left:
        why = ". ".join(found.short_contexts) or "The references' templates write none of the completions"
        raise RunError(f"0 pairs are left that every reference reads: nothing would be scored or trained. {why}.")
    return Ending(next="score-refs")
