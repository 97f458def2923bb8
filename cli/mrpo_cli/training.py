"""`mrpo train` and `mrpo merge`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli import interrupts
from mrpo_cli.options import ANCHOR, METHOD, OUTPUT, PAIRS, TRAINING, report_ignored, takes_recipe

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe


@takes_recipe(PAIRS, ANCHOR, METHOD, TRAINING, OUTPUT)
def train(
    recipe: "Recipe",
    overrides: dict[str, Any],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint.")] = False,
) -> None:
    """Stage two: train the policy with LoRA against the cached references.

    On several GPUs: torchrun --nproc-per-node gpu $(which mrpo) train RECIPE.
    """
    report_ignored(recipe, overrides)
    if not resume:
        interrupts.go_on_with("--resume")
    from mrpo_pipeline.policy.distributed import rank
    from mrpo_pipeline.policy.run import train_recipe

    metrics = train_recipe(recipe, resume=resume)
    if rank():
        return
    for name in ("train_loss", "eval_loss", "eval_accuracy/policy", "eval_accuracy/anchor", "eval_rewards/accuracies"):
        if name in metrics:
            print(f"{name:28} {metrics[name]:.4f}")
    print(f"The adapter lies in {recipe.output_dir}")


def merge(
    adapter: Annotated[Path, typer.Argument(help="The folder of `mrpo train`, or one of its checkpoints.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the merged checkpoint, a new one.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base: folder or hub name; what the adapter names if not given.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the merged weights: auto is the base's own.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the base.")
    ] = False,
) -> None:
    """Write adapter and base as one plain checkpoint, and compare its log-probs with the adapted model's."""
    from mrpo_pipeline.policy.merge import merge_adapter

    merged = merge_adapter(adapter, output, base=base, dtype=dtype, trust_remote_code=trust_remote_code)
    for notice in merged.notices:
        print(f"mrpo: {notice}", file=sys.stderr)
    found = merged.differences
    print(
        f"Log-probs, in nats per token: the adapter changes the base's by {found.effect:.2g}, and the merged model's differ from "
        f"the adapted one's by {found.rounding:.2g}, as {merged.dtype} rounds."
    )
    print(
        f"The merged model is in {output} ({merged.dtype}); it loads as any model: `model: {output}` in a recipe, say."
    )


def register(app: typer.Typer) -> None:
    app.command("train")(train)
    app.command("merge")(merge)
