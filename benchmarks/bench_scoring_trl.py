"""Stage one with the transformers engine beside TRL's precomputed reference: CPU seconds and memory.

    python benchmarks/bench_scoring_trl.py [--model DIR] [--pairs FILE …] [--count 400] [--repeats 5]

The same model in float32 (a tiny Llama, or `--model`) and the same pairs for both, on one thread; the runs take turns, each in its
own process. Times exclude imports. Memory excludes that at rest, with imports done and the model loaded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measuring
import side_by_side
from measuring import claim, in_own_process, peak_rss_mb, timed
from side_by_side import Task

OURS, TRL = "mrpo score-refs, transformers engine", "TRL, precompute_ref_log_probs"
GOAL = 1 / 0.15
FIGURES = ("pass_cpu_s", "whole_cpu_s", "added_mb", "completions", "tokens")

NOTES = """\
In brackets: this project's as a share of TRL's. “In all” is a run from the pairs file to what lies on disk, imports left
out: for TRL the making of its trainer, for this project stage one with the loading of the model. “The pass” is what TRL's
trainer spends in its precomputing, and here what is spent from the loaded model to the last shard written. TRL
scores both sides of every pair, padded in the order of the data, this project each distinct completion once, sorted by
length. Memory is the process's peak over what it takes at rest, imports done and model loaded."""


def run_ours(task: Task, folder: str) -> dict[str, float]:
    """All of stage one, as the command runs it."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401 - imports are no part of the time

    import mrpo_pipeline.models.head  # noqa: F401
    from mrpo_pipeline.engines.transformers import TransformersEngine
    from mrpo_pipeline.scoring import score_references

    torch.set_num_threads(1)
    opened: list[float] = []
    load = TransformersEngine.__init__

    def timed_load(engine: TransformersEngine, *args: Any, **options: Any) -> None:
        load(engine, *args, **options)
        opened.append(time.process_time())

    TransformersEngine.__init__ = timed_load  # type: ignore[method-assign]
    recipe = side_by_side.recipe(task, folder, folder)
    (report,), whole = timed(lambda: score_references(recipe))
    return {
        "pass_cpu_s": time.process_time() - opened[0],
        "whole_cpu_s": whole["cpu_s"],
        "completions": report.scored,
        "tokens": report.tokens,
        "peak_mb": peak_rss_mb(),
    }


def run_trl(task: Task, folder: str) -> dict[str, float]:
    """TRL's pass over the reference, measured inside its trainer, and the creation of that trainer."""
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

    torch.set_num_threads(1)
    spent: list[dict[str, float]] = []

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *args: Any, **options: Any) -> Any:
            result, seconds = timed(lambda: super(Timed, self)._precompute_ref_logps(*args, **options))
            spent.append(seconds)
            return result

    trainer, whole = timed(lambda: side_by_side.trl_trainer(task, folder, precompute=True, kind=Timed))
    rows = [
        min(len(row["prompt_ids"]) + len(row[side]), task.max_length)
        for row in trainer.train_dataset
        for side in ("chosen_ids", "rejected_ids")
    ]
    (seconds,) = spent
    return {
        "pass_cpu_s": seconds["cpu_s"],
        "whole_cpu_s": whole["cpu_s"],
        "completions": len(rows),
        "tokens": sum(rows),
        "peak_mb": peak_rss_mb(),
    }


MODULES = {
    OURS: (
        "mrpo_pipeline.scoring",
        "mrpo_pipeline.engines.transformers",
        "mrpo_pipeline.models",
        "mrpo_pipeline.cache",
    ),
    TRL: ("datasets", "peft", "trl.trainer.dpo_trainer"),
}


def report(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    def cell(name: str, figure: str, digits: int) -> str:
        found = figures[name][figure]
        theirs = figures.get(TRL, {}).get(figure)
        share = f" ({found['median'] / theirs['median']:.2f})" if theirs and name != TRL and digits else ""
        return f"{found['median']:,.{digits}f}{share}"

    header = ["median", "the pass, CPU s", "in all, CPU s", "peak over resting, MB", "completions", "tokens"]
    digits = {"pass_cpu_s": 2, "whole_cpu_s": 2, "added_mb": 1}
    body = [[name, *(cell(name, figure, digits.get(figure, 0)) for figure in FIGURES)] for name in figures]
    return measuring.table(header, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", help="its folder; else a tiny Llama with random weights")
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--count", type=int, default=400, help="pairs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    args = parser.parse_args()
    machine = measuring.machine()
    pairs = side_by_side.find_pairs(args.pairs)
    contestants: dict[str, Callable[[Task, str], dict[str, Any]]] = {OURS: run_ours}
    if side_by_side.has_trl():
        contestants[TRL] = run_trl
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        task = Task(folder, max_length=args.max_length)
        side_by_side.set_up(task, pairs, count=args.count, held_out=0, vocabulary=args.vocabulary, model=args.model)
        resting = {name: in_own_process(measuring.resting_rss_mb, task.policy, MODULES[name]) for name in contestants}
        for repeat in range(args.repeats):
            for number, (name, contestant) in enumerate(contestants.items()):
                began = time.monotonic()
                run = in_own_process(contestant, task, str(Path(folder) / f"run-{repeat}-{number}"))
                run["added_mb"] = run["peak_mb"] - resting[name]
                runs[name].append(run)
                print(
                    f"{repeat + 1} of {args.repeats}, {name}: {run['whole_cpu_s']:.2f} CPU s, {run['added_mb']:.0f} MB over "
                    f"resting ({time.monotonic() - began:.0f} s with imports)",
                    flush=True,
                )
    figures = {name: measuring.summarize(of, FIGURES) for name, of in runs.items()}
    model = (
        Path(args.model).name if args.model else f"{side_by_side.POLICY}, vocabulary {args.vocabulary}, random weights"
    )
    text = "\n\n".join(
        [
            "# Scoring by transformers, side by side with TRL's precomputing",
            f"{args.count} pairs of {side_by_side.named(pairs)}, at most {args.max_length} tokens; {model}, float32, "
            f"one thread; median of {args.repeats} runs, which took turns.",
            measuring.describe_machine(machine),
            report(figures),
            NOTES,
        ]
    )
    claims = [
        claim(
            f"TRL's precomputing ÷ mrpo score-refs by transformers, {what}",
            figures[TRL][name]["median"] / of["median"],
            at_least=goal,
        )
        for name, what, goal in (
            ("pass_cpu_s", "CPU seconds of the pass", GOAL if args.model else None),
            ("added_mb", "peak memory over resting", None),
        )
        for of in [figures[OURS][name]]
        if TRL in figures
    ]
    document = {
        "task": asdict(task)
        | {"folder": None, "model": model, "pairs": side_by_side.named(pairs), "count": args.count},
        "machine": machine,
        "resting_mb": resting,
        "figures": figures,
        "claims": claims,
        "runs": runs,
    }
    measuring.write_results("scoring_trl", document, text)


if __name__ == "__main__":
    main()
