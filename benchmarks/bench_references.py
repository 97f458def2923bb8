"""What a further reference costs stage two: cached as this project has them, and in memory as the authors' code has them.

    python benchmarks/bench_references.py [--pairs FILE] [--steps 40] [--repeats 5]

The same tiny Llama as policy, the same pairs and adapter for all, on one thread; the runs take turns, each in a process of
its own. References in memory are as large as the policy and run at every step by this project's own lean forward pass, which
is kinder to them than full logits would be.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import measuring
import our_training
import side_by_side
from measuring import in_own_process
from side_by_side import Task

FIGURES = ("step_cpu_s", "added_rss_mb", "prepare_cpu_s")
BASE = "cached, K = 1"

NOTES = """\
In brackets: times the first line. A step is timed from its begin to its end, as callbacks see it; preparing is what `mrpo
train` does before, the loading of the policy and of K cached references with it. Memory is the peak over what the process
takes at rest, imports done and the policy loaded."""


def small_reference(folder: str, policy: str) -> None:
    """A reference that is quick to score: what is cached of it costs training the same, whatever its size."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(policy)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 1
    config.head_dim = 32 // config.num_attention_heads
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--count", type=int, default=400, help="training pairs")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    machine, pairs = measuring.machine(), side_by_side.find_pairs(args.pairs)
    contestants: dict[str, dict[str, int]] = {
        **{f"cached, K = {count}": {"cached": count, "resident": 0} for count in (1, 2, 3, 8)},
        **{f"in memory, K = {count}": {"cached": 1, "resident": count} for count in (1, 2, 3)},
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        task = Task(folder, args.steps, args.batch, args.max_length)
        side_by_side.set_up(task, pairs, count=args.count, held_out=0, vocabulary=args.vocabulary)
        small, cache = task.path("small"), task.path("cache")
        in_own_process(small_reference, small, task.policy)
        references = {"anchor": task.policy, **{f"other-{number}": small for number in range(2, 9)}}
        in_own_process(our_training.score, task, cache, folder, references)
        resting = in_own_process(measuring.resting_rss_mb, task.policy, our_training.MODULES)
        for repeat in range(args.repeats):
            for number, (name, settings) in enumerate(contestants.items()):
                run = in_own_process(
                    our_training.train,
                    task,
                    cache,
                    str(Path(folder) / f"run-{repeat}-{number}"),
                    dict(list(references.items())[: settings["cached"]]),
                    resident=settings["resident"],
                )
                run["added_rss_mb"] = run["peak_rss_mb"] - resting
                runs[name].append(run)
                print(f"{repeat + 1} of {args.repeats}, {name}: {run['step_cpu_s']:.4f} CPU s/step", flush=True)
    figures = {name: measuring.summarize(of, FIGURES) for name, of in runs.items()}

    def cell(name: str, figure: str, digits: int) -> str:
        found, base = figures[name][figure]["median"], figures[BASE][figure]["median"]
        return f"{found:.{digits}f} ({found / base:.3f}×)"

    body = [[name, cell(name, FIGURES[0], 4), cell(name, FIGURES[1], 0), cell(name, FIGURES[2], 2)] for name in figures]
    text = "\n\n".join(
        [
            "# References cached and in memory",
            f"{args.steps} steps of {args.batch} pairs of {side_by_side.named(pairs)}, at most {args.max_length} tokens; "
            f"{side_by_side.POLICY}, vocabulary {args.vocabulary}, random weights, float32; LoRA r 8 on all linear layers; one "
            f"thread; median of {args.repeats} runs, which took turns.",
            measuring.describe_machine(machine),
            measuring.table(["median", "CPU s/step", "MB above resting", "preparing, CPU s"], body),
            NOTES,
        ]
    )
    document = {"machine": machine, "resting_rss_mb": resting, "figures": figures, "runs": runs}
    measuring.write_results("references", document, text)


if __name__ == "__main__":
    main()
