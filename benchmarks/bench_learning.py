"""Does the speed cost accuracy? Default runs of this project and of TRL, each with its own initial adapters and orders, over several seeds.

    python benchmarks/bench_learning.py [--pairs FILE] [--steps 100] [--seeds 5] [--held-out 200] [--jobs 1]

A seed determines the initial adapter and the order of the pairs, which each tool draws itself. This project runs with its default
order, and once more with batches grouped by length, which saves padding. All adapters
are evaluated by this project on the same held-out pairs, which no run has seen. The loss before
any training is ln 2 = 0.693.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace

import measuring
import our_training
import side_by_side
from measuring import in_own_process
from side_by_side import Task

OURS, GROUPED, TRL = "mrpo", "mrpo, batches by length", "TRL"
LOSS, ACCURACY = "eval_loss", "eval_rewards/accuracies"

NOTES = """\
± is the standard deviation over the seeds: how far apart two runs of one tool fall that differ in nothing but the start of the
adapter and the order of the pairs. The interval is Welch's t, 95%, of the difference of the means; where 0 lies in it, these
runs show no difference.
TRL trains on pairs whose sides are equal once they are cut as well, which have no gradient; this project leaves them out."""


def our_run(task: Task, folder: str) -> dict[str, float]:
    """A default run of `mrpo train`, with held-out pairs."""
    import torch

    from mrpo_pipeline.policy.run import train_recipe

    torch.set_num_threads(1)
    return figures_of(task, train_recipe(side_by_side.recipe(task, task.path("cache"), folder)))


def their_run(task: Task, folder: str) -> dict[str, float]:
    """A default run of TRL, its adapter then evaluated by this project."""
    import torch
    from transformers import PrinterCallback, set_seed

    torch.set_num_threads(1)
    # TRL initializes the adapter before it seeds anything.
    set_seed(task.seed)
    trainer = side_by_side.trl_trainer(task, folder, precompute=False, evaluates=False)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(folder)
    return figures_of(task, judge(task, folder))


def judge(task: Task, adapter: str) -> dict[str, float]:
    """Metrics of an adapter on the held-out pairs."""
    from transformers import PrinterCallback

    from mrpo_pipeline.dataset.reference_logps import open_caches
    from mrpo_pipeline.dataset.splits import examples_of, load_splits
    from mrpo_pipeline.policy.arguments import training_arguments
    from mrpo_pipeline.policy.model import load_policy
    from mrpo_pipeline.policy.trainer import PreferenceTrainer

    recipe = side_by_side.recipe(task, task.path("cache"), adapter)
    caches = open_caches(recipe)
    splits = load_splits(recipe, caches, "train", "eval")
    train, held_out = (examples_of(splits[name], recipe.method)[0] for name in ("train", "eval"))
    model = load_policy(recipe.required_policy().model_copy(update={"adapter": adapter}))
    arguments = training_arguments(recipe.training, adapter, dtype="float32", evaluates=True)
    trainer = PreferenceTrainer(model, arguments, recipe.method, train, held_out)
    trainer.remove_callback(PrinterCallback)
    return dict(trainer.evaluate())


def figures_of(task: Task, results: dict[str, float]) -> dict[str, float]:
    return {"seed": task.seed, "loss": results[LOSS], "accuracy": results[ACCURACY]}


def welch(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Difference of the means with its 95% interval (Welch's t)."""
    from scipy.stats import ttest_ind

    interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return statistics.mean(ours) - statistics.mean(theirs), float(interval.low), float(interval.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--held-out", type=int, default=200, help="held-out pairs")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    args = parser.parse_args()
    machine, pairs = measuring.machine(), side_by_side.find_pairs(args.pairs)
    if not side_by_side.has_trl():
        return
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        task = Task(folder, args.steps, args.batch, args.max_length)
        count = args.steps * args.batch
        side_by_side.set_up(task, pairs, count=count, held_out=args.held_out, vocabulary=args.vocabulary)
        in_own_process(our_training.score, task, task.path("cache"), folder)

        by_length = replace(task, order="group_by_length")
        runs = measuring.take_turns(
            {
                OURS: lambda output, seed: in_own_process(our_run, replace(task, seed=seed), output),
                GROUPED: lambda output, seed: in_own_process(our_run, replace(by_length, seed=seed), output),
                TRL: lambda output, seed: in_own_process(their_run, replace(task, seed=seed), output),
            },
            args.seeds, folder, jobs=args.jobs,
            line=lambda found: f"seed {found['seed']}: held-out loss {found['loss']:.4f}, accuracy {found['accuracy']:.3f}",
        )  # fmt: skip
    body, claims, differences = [], [], {}
    for name, of in runs.items():
        cells = [name]
        for figure, digits in (("loss", 4), ("accuracy", 3)):
            values, theirs = ([run[figure] for run in some] for some in (of, runs[TRL]))
            cells.append(f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}")
            cells.append(f"{min(values):.{digits}f}–{max(values):.{digits}f}")
            if name == TRL:
                cells.append("")
                continue
            difference, low, high = welch(values, theirs)
            differences[f"{name}, {figure}"] = {"difference": difference, "low": low, "high": high}
            cells.append(f"{difference:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})")
            text = f"{difference:+.{digits}f} (95%: {low:+.{digits}f} to {high:+.{digits}f})"
            # Batches by length are shown for comparison; they are not the default and have no goal.
            goal, met = ("0 in it", low <= 0 <= high) if name == OURS else ("", None)
            what = f"{name} − TRL, held-out {figure}, {args.seeds} seeds each"
            claims.append({"what": what, "value": text, "goal": goal, "met": met, "number": difference})
        body.append(cells)
    header = ["over the seeds", "held-out loss", "range", "less TRL's", "held-out accuracy", "range", "less TRL's"]
    text = "\n\n".join(
        [
            "# Does speed cost learning?",
            f"{args.steps} steps of {args.batch} pairs of {side_by_side.named(pairs)}, at most {args.max_length} tokens, learning "
            f"rate {task.learning_rate:g}; {args.seeds} seeds each; {args.held_out} pairs held out; {side_by_side.POLICY}, "
            f"vocabulary {args.vocabulary}, random weights, float32; LoRA r 8 on all linear layers.",
            measuring.describe_machine(machine),
            measuring.table(header, body),
            NOTES,
        ]
    )
    document = {"given": vars(args), "machine": machine, "claims": claims, "differences": differences, "runs": runs}
    measuring.write_results("learning", document, text)


if __name__ == "__main__":
    main()
