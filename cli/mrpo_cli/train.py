"""`mrpo train`."""

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli import interrupts
from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_decorator import report_ignored, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo train recipe.yaml --beta 0.2 --learning-rate 2e-5 --output-dir out")
@takes_recipe("train", needs=("policy", "target", "pairs"))
def train(
    recipe: "Recipe",
    overrides: dict[str, Any],
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last complete checkpoint.")] = False,
) -> Ending | None:
    """Stage two: train the policy with LoRA against the cached references.

    For several GPUs: torchrun --nproc-per-node gpu $(which mrpo) train RECIPE.
    """
    report_ignored(recipe, overrides)
    if not resume:
        interrupts.advise("--resume")
    from mrpo_pipeline.policy.distributed import rank
    from mrpo_pipeline.policy.run import train_recipe

    metrics = train_recipe(recipe, resume=resume)
    if rank():
        return None
    shares = ("eval_accuracy/policy", "eval_accuracy/anchor", "eval_rewards/accuracies")
    drift = ("eval_drift/chosen_per_token", "eval_drift/rejected_per_token")
    for name in ("train_loss", "eval_loss", *shares, *drift):
        if name in metrics:
            print(f"{name:28} {metrics[name]:.4f}")
    held_out = any(name.startswith("eval_") for name in metrics)
    following = (
        ["evaluate", "--adapter", recipe.output_dir] if held_out else ["merge", recipe.output_dir, "--output", "merged"]
    )
    return Ending(
        f"{recipe.output_dir} (a PEFT adapter; README.md is its card, train_results.json has the metrics)",
        shlex.join(["mrpo", *following]),
    )
