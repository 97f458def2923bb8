"""What each fast path of the training step saves: with one of them off at a time, and with all off.

    python benchmarks/bench_fast_paths.py [--pairs FILE] [--long-pairs FILE] [--steps 20] [--long-steps 10] [--repeats 3]

The same run of `mrpo train` each time (same pairs in the same steps, same adapter), on one thread; the runs take turns, each
in its own process. Short prompts are cut at 256 tokens, long ones at 1024. With all four off, what remains is
a bare training loop over padded rows, with the reference's log-probs still cached.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import our_training
import side_by_side
from measuring import claim, in_own_process
from side_by_side import Task

OFF: dict[str, dict[str, Any]] = {
    "share_prompt": {"share_prompt": False},
    "micro_batch_tokens": {"micro_batch_tokens": "off"},
    "fused_lora": {"fused_lora": False},
    "chunked_head": {"chunked_head": False},
}
ALL_ON, ALL_OFF = "all on", "all off"
SWITCHED: dict[str, dict[str, Any]] = {
    ALL_ON: {},
    **{f"without {name}": off for name, off in OFF.items()},
    ALL_OFF: {key: value for off in OFF.values() for key, value in off.items()},
}
FIGURES = ("step_cpu_s", "added_rss_mb", "tokens_share", "loss_last")

NOTES = """\
In brackets: times the first line. Tokens are those run through the model in training, padding included, as a share of the
real tokens with every prompt counted with both of its completions. The paths are not independent: two rows for each pair
are padded, which small micro-batches of like length keep low, so that what one gives depends on the others. The last loss
shows that they change the cost alone."""


def measure(
    folder: Path, pairs: list[Path], *, steps: int, max_length: int, args: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """The runs of every setting on one data set."""
    folder.mkdir()
    task = Task(str(folder), steps, args.batch, max_length)
    side_by_side.set_up(task, pairs, count=steps * args.batch, held_out=0, vocabulary=args.vocabulary)
    cache = task.path("cache")
    in_own_process(our_training.score, task, cache, task.folder)
    resting = in_own_process(measuring.resting_rss_mb, task.policy, our_training.MODULES)

    def run(training: dict[str, Any], output: str, _: int) -> dict[str, Any]:
        found: dict[str, Any] = in_own_process(our_training.train, task, cache, output, training=training)
        found["added_rss_mb"] = found["peak_rss_mb"] - resting
        found["tokens_share"] = found["tokens_run"] / found["real_tokens"]
        return found

    return measuring.take_turns(
        {name: partial(run, training) for name, training in SWITCHED.items()},
        args.repeats, task.folder, jobs=args.jobs,
        line=lambda found: f"{found['step_cpu_s']:.4f} CPU s/step, {found['added_rss_mb']:.0f} MB over resting",
    )  # fmt: skip


def report(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    def cell(name: str, figure: str, digits: int) -> str:
        found, base = figures[name][figure]["median"], figures[ALL_ON][figure]["median"]
        return f"{found:.{digits}f} ({found / base:.2f}×)"

    body = [
        [
            name,
            cell(name, "step_cpu_s", 4),
            cell(name, "added_rss_mb", 0),
            f"{of['tokens_share']['median']:.3f}",
            f"{of['loss_last']['median']:.5f}",
        ]
        for name, of in figures.items()
    ]
    return measuring.table(["median", "CPU s/step", "MB above resting", "tokens run ÷ real", "last loss"], body)


def claims(what: str, figures: dict[str, dict[str, dict[str, float]]], *, goal: float | None) -> list[dict[str, Any]]:
    def median(name: str, figure: str) -> float:
        return figures[name][figure]["median"]

    found = [claim(f"tokens run ÷ real tokens, {what}", median(ALL_ON, "tokens_share"), at_most=goal, form="{:.3f}")]
    for name in SWITCHED:
        if name != ALL_ON:
            times = median(name, "step_cpu_s") / median(ALL_ON, "step_cpu_s")
            found.append(claim(f"{name} ÷ all on, CPU seconds of a step, {what}", times))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages; short prompts"
    )
    parser.add_argument("--long-pairs", nargs="+", help="the same with long prompts")
    parser.add_argument("--steps", type=int, default=20, help="on short prompts")
    parser.add_argument("--long-steps", type=int, default=10, help="on long prompts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--long-max-length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    args = parser.parse_args()
    machine = measuring.machine()
    runs, parts, claimed, figures = {}, [], [], {}
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        work = {
            "short prompts": (side_by_side.find_pairs(args.pairs), args.steps, args.max_length),
            "long prompts": (
                side_by_side.find_long_pairs(args.long_pairs, folder),
                args.long_steps,
                args.long_max_length,
            ),
        }
        for what, (pairs, steps, max_length) in work.items():
            print(f"{what}: {side_by_side.named(pairs)}", flush=True)
            place = Path(folder) / what.replace(" ", "-")
            runs[what] = measure(place, pairs, steps=steps, max_length=max_length, args=args)
            figures[what] = {name: measuring.summarize(of, FIGURES) for name, of in runs[what].items()}
            goal = 0.9 if what == "short prompts" else None
            claimed += claims(what, figures[what], goal=goal)
            parts += [
                f"{what.capitalize()}: {steps} steps of {args.batch} pairs of {side_by_side.named(pairs)}, at most "
                f"{max_length} tokens.",
                report(figures[what]),
            ]
    text = "\n\n".join(
        [
            "# What each fast path gives",
            f"{side_by_side.POLICY}, vocabulary {args.vocabulary}, random weights, float32; LoRA r 8 on all linear layers; one "
            f"thread; median of {args.repeats} runs, which took turns.",
            measuring.describe_machine(machine),
            *parts,
            NOTES,
        ]
    )
    document = {"given": vars(args), "machine": machine, "figures": figures, "claims": claimed, "runs": runs}
    measuring.write_results("fast_paths", document, text)


if __name__ == "__main__":
    main()
