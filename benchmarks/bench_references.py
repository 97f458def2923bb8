"""What a further reference costs in stage two: cached, as in this project, and in memory, as in the authors' code.

    python benchmarks/bench_references.py [--pairs FILE] [--steps 50] [--repeats 5]

The same tiny Llama as policy, the same pairs in the same steps and the same adapter for all, on one thread; the runs
alternate, each in its own process. References in memory are as large as the policy and run at every step with this
project's own forward pass, which is faster than full logits would be.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from typing import Any

import measuring
import our_training
import side_by_side
from measuring import claim, in_own_process
from side_by_side import Task

CACHED, RESIDENT = (1, 2, 3, 8), (1, 2, 3)
FIGURES = ("step_cpu_s", "same_step", "added_rss_mb", "peak_rss_mb", "prepare_cpu_s")
BASE = "cached, K = 1"

NOTES = """\
In brackets: times the first line. A step is timed from its begin to its end, as callbacks see it. “Same step” compares each
step with that very step of the first line's run of the same turn, and is the median of those ratios: the pairs of a step are
the same in every run, so neither their lengths nor a hiccup of the machine is in it. Preparing is what `mrpo train` does
before, the loading of the policy and of K cached references with it. Memory is the peak over what the process takes at rest,
imports done and the policy loaded; it moves by some MB from run to run whatever K is."""


def small_reference(folder: str, policy: str) -> None:
    """A reference that is quick to score: its size does not change what its cache costs in training."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(policy)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 1
    config.head_dim = 32 // config.num_attention_heads
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)


def compare_steps(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Add ``same_step`` to every run: the median over steps of its time divided by the base run's time for that step."""
    for of in runs.values():
        for run, base in zip(of, runs[BASE], strict=True):
            pairs = zip(run["steps_cpu_s"], base["steps_cpu_s"], strict=True)
            run["same_step"] = statistics.median(own / other for own, other in pairs)


def claims(figures: dict[str, dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    def times(name: str, figure: str, base: str = BASE) -> float:
        return figures[name][figure]["median"] / figures[base][figure]["median"]

    most, resident = f"cached, K = {CACHED[-1]}", f"in memory, K = {RESIDENT[-1]}"
    same = figures[most]["same_step"]["median"]
    return [
        claim("K = 8 ÷ K = 1 cached, CPU seconds of a step", times(most, "step_cpu_s"), at_most=1.02, form="{:.3f}×"),
        claim("K = 8 ÷ K = 1 cached, step by step", same, at_most=1.02, form="{:.3f}×"),
        claim("K = 8 ÷ K = 1 cached, peak memory", times(most, "peak_rss_mb"), at_most=1.02, form="{:.3f}×"),
        claim("K = 8 ÷ K = 1 cached, peak over resting", times(most, "added_rss_mb"), at_most=1.02, form="{:.3f}×"),
        claim("K = 3 in memory ÷ cached, CPU seconds of a step", times(resident, "step_cpu_s", "cached, K = 3")),
        claim("K = 3 in memory ÷ cached, peak over resting", times(resident, "added_rss_mb", "cached, K = 3")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    args = parser.parse_args()
    machine, pairs = measuring.machine(), side_by_side.find_pairs(args.pairs)
    # The two whose small difference matters run one after the other.
    cached = {f"cached, K = {count}": {"cached": count, "resident": 0} for count in (1, 8, 2, 3)}
    resident = {f"in memory, K = {count}": {"cached": 1, "resident": count} for count in RESIDENT}
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        task = Task(folder, args.steps, args.batch, args.max_length)
        count = args.steps * args.batch
        side_by_side.set_up(task, pairs, count=count, held_out=0, vocabulary=args.vocabulary)
        small, cache = task.path("small"), task.path("cache")
        in_own_process(small_reference, small, task.policy)
        references = {"anchor": task.policy, **{f"other-{number}": small for number in range(2, CACHED[-1] + 1)}}
        in_own_process(our_training.score, task, cache, folder, references)
        resting = in_own_process(measuring.resting_rss_mb, task.policy, our_training.MODULES)

        def run(settings: dict[str, int], output: str, _: int) -> dict[str, Any]:
            used = dict(list(references.items())[: settings["cached"]])
            found: dict[str, Any] = in_own_process(
                our_training.train, task, cache, output, used, resident=settings["resident"]
            )
            found["added_rss_mb"] = found["peak_rss_mb"] - resting
            return found

        runs = measuring.take_turns(
            {name: partial(run, settings) for name, settings in {**cached, **resident}.items()},
            args.repeats, folder, jobs=args.jobs,
            line=lambda found: f"{found['step_cpu_s']:.4f} CPU s/step, {found['added_rss_mb']:.0f} MB over resting",
        )  # fmt: skip
    compare_steps(runs)
    figures = {name: measuring.summarize(runs[name], FIGURES) for name in sorted(runs)}

    def cell(name: str, figure: str, digits: int) -> str:
        found, base = figures[name][figure]["median"], figures[BASE][figure]["median"]
        return f"{found:.{digits}f} ({found / base:.3f}×)"

    body = [
        [
            name,
            cell(name, "step_cpu_s", 4),
            f"{figures[name]['same_step']['median']:.3f}×",
            cell(name, "added_rss_mb", 0),
            cell(name, "peak_rss_mb", 0),
            cell(name, "prepare_cpu_s", 2),
        ]
        for name in figures
    ]
    header = ["median", "CPU s/step", "same step", "MB above resting", "MB in all", "preparing, CPU s"]
    text = "\n\n".join(
        [
            "# References cached and in memory",
            f"{args.steps} steps of {args.batch} pairs of {side_by_side.named(pairs)}, at most {args.max_length} tokens; "
            f"{side_by_side.POLICY}, vocabulary {args.vocabulary}, random weights, float32; LoRA r 8 on all linear layers; one "
            f"thread; median of {args.repeats} runs, which took turns.",
            measuring.describe_machine(machine),
            measuring.table(header, body),
            NOTES,
        ]
    )
    document = {
        "given": vars(args),
        "machine": machine,
        "resting_rss_mb": resting,
        "figures": figures,
        "claims": claims(figures),
        "runs": runs,
    }
    measuring.write_results("references", document, text)


if __name__ == "__main__":
    main()
