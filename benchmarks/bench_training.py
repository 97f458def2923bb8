"""Stage two beside TRL's DPOTrainer: CPU seconds per optimizer step, preparation, and memory.

    python benchmarks/bench_training.py [--pairs FILE] [--peer SCRIPT] [--steps 100] [--repeats 5] [--jobs 1]

The same tiny Llama, pairs, adapter, batch, lengths and schedule for all, on one thread; the runs take turns, each in its
own process. TRL runs twice: with the reference in every step (its default), and with its log-probs precomputed.
This project runs as `mrpo score-refs` and `mrpo train` do: with metrics, logging, progress lines and the anchor check.
The steps make one epoch, so that all train on the same pairs, in any order. On a shared machine, compare CPU seconds.
A repeat of 100 steps takes about seven minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measuring
import our_training
import side_by_side
import their_training
from measuring import claim, in_own_process, resting_rss_mb
from side_by_side import SHARED_PEER, Task

OURS, THEIRS, THEIRS_PRECOMPUTED = "mrpo", "TRL", "TRL, precomputed"
FIGURES = (
    "step_cpu_s",
    "loop_cpu_s",
    "prepare_cpu_s",
    "score_cpu_s",
    "added_rss_mb",
    "peak_rss_mb",
    "loss_last",
    "accuracy",
)

Figures = dict[str, dict[str, dict[str, float]]]

NOTES = """\
In brackets: how many times this project's. A step is timed from its begin to its end, as callbacks see it; the whole loop
takes in the loading of batches, the logging and, for this project, the check of the start and of the shared prompts. Preparing
is reading, tokenizing, precomputing the reference or looking it up, and for this project also loading the policy; scoring is
its stage one with the loading of the reference, done once for all runs on these pairs. Memory is the peak until training
ends; at rest is a process with the same imports and the policy loaded. This project leaves out pairs whose sides are equal
once they are cut: TRL trains on them, to no effect."""


def run_ours(task: Task, folder: str) -> dict[str, Any]:
    cache = str(Path(folder) / "cache")
    scored: dict[str, Any] = in_own_process(our_training.score, task, cache, folder)
    return {**scored, **in_own_process(our_training.train, task, cache, folder)}


def run_peer(task: Task, folder: str, precompute: bool, peer: Path | None, split: dict[str, int]) -> dict[str, Any]:
    """One run of TRL, by the peer script or the built-in one, with its own empty caches."""
    if peer is None:
        return dict(in_own_process(their_training.train, task, folder, precompute=precompute))
    settings = {
        "--policy": task.policy,
        "--pairs": task.pairs,
        "--count": split["count"],
        "--held-out": split["held_out"],
        "--steps": task.steps,
        "--batch": task.batch,
        "--max-length": task.max_length,
        "--learning-rate": task.learning_rate,
        "--beta": task.beta,
        "--seed": task.seed,
        "--threads": 1,
        "--out": folder,
    }
    command = [str(peer), *(str(part) for setting in settings.items() for part in setting)]
    told = measuring.run_script([*command, *(["--precompute"] if precompute else [])])
    return {
        "step_cpu_s": told["step_cpu_s"],
        "loop_cpu_s": told["train_cpu_s"] / task.steps,
        "prepare_cpu_s": told["prepare_cpu_s"],
        "peak_rss_mb": told["peak_rss_mb"],
        "loss_last": told["loss_last"],
        "accuracy": told["eval"].get("eval_rewards/accuracies"),
        "pairs": told["pairs"],
    }


def find_peer(asked: str | None) -> Path | None:
    """The peer script, or None."""
    path = Path(asked) if asked is not None else SHARED_PEER
    if path.is_file():
        return path
    if asked is not None:
        raise SystemExit(f"--peer {asked}: there is no such file.")
    print(f"{path} is not here: the same run of TRL that is built into this benchmark is used instead.")
    return None


def report(figures: Figures) -> str:
    """The table of medians, with TRL's as multiples of this project's."""

    def cell(name: str, figure: str, digits: int, *, ratio: bool = False) -> str:
        found = figures[name].get(figure)
        if found is None:
            return "–"
        ours = figures[OURS].get(figure)
        times = f" ({found['median'] / ours['median']:.2f}×)" if ratio and ours and name != OURS else ""
        return f"{found['median']:.{digits}f}{times}"

    header = [
        "median", "CPU s/step", "CPU s/step, whole loop", "preparing, CPU s", "scoring, CPU s",
        "MB above resting", "MB in all", "last loss", "held-out accuracy",
    ]  # fmt: skip
    body = [
        [
            name,
            cell(name, "step_cpu_s", 4, ratio=True),
            cell(name, "loop_cpu_s", 4, ratio=True),
            cell(name, "prepare_cpu_s", 2),
            cell(name, "score_cpu_s", 2),
            cell(name, "added_rss_mb", 0, ratio=True),
            cell(name, "peak_rss_mb", 0),
            cell(name, "loss_last", 3),
            cell(name, "accuracy", 3),
        ]
        for name in figures
    ]
    return measuring.table(header, body)


def spread(figures: Figures) -> str:
    parts = [f"{name} {of['step_cpu_s']['low']:.4f}–{of['step_cpu_s']['high']:.4f}" for name, of in figures.items()]
    return "CPU s/step from the lowest to the highest run: " + ", ".join(parts) + "."


def claims(figures: Figures) -> list[dict[str, Any]]:
    def median(name: str, figure: str) -> float:
        return figures[name][figure]["median"]

    found = []
    for name, goal in ((THEIRS_PRECOMPUTED, 2.5), (THEIRS, 3.5)):
        if name in figures:
            for figure, what in (("step_cpu_s", "a step"), ("loop_cpu_s", "a step, whole loop")):
                times = median(name, figure) / median(OURS, figure)
                found.append(claim(f"{name} ÷ mrpo, CPU seconds of {what}", times, at_least=goal))
            share = median(OURS, "added_rss_mb") / median(name, "added_rss_mb")
            found.append(claim(f"mrpo ÷ {name}, peak memory over resting", share, at_most=0.6))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--peer", help="the script that runs TRL")
    parser.add_argument("--held-out", type=int, default=40, help="held-out pairs, no prompt shared with training")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--order", default="random", help="this project's train_sampling_strategy")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    args = parser.parse_args()
    machine = measuring.machine()
    pairs, with_trl = side_by_side.find_pairs(args.pairs), side_by_side.has_trl()
    peer = find_peer(args.peer) if with_trl else None
    split = {"count": args.steps * args.batch, "held_out": args.held_out}
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        task = Task(folder, args.steps, args.batch, args.max_length, order=args.order)
        side_by_side.set_up(task, pairs, vocabulary=args.vocabulary, **split)
        contestants: dict[str, Callable[[str, int], dict[str, Any]]] = {OURS: lambda out, _: run_ours(task, out)}
        if with_trl:
            contestants[THEIRS_PRECOMPUTED] = lambda out, _: run_peer(task, out, True, peer, split)
            contestants[THEIRS] = lambda out, _: run_peer(task, out, False, peer, split)
        resting = {
            name: in_own_process(
                resting_rss_mb, task.policy, our_training.MODULES if name == OURS else their_training.MODULES
            )
            for name in contestants
        }
        runs = measuring.take_turns(
            contestants, args.repeats, folder, jobs=args.jobs,
            line=lambda run: f"{run['step_cpu_s']:.4f} CPU s/step, {run['peak_rss_mb']:.0f} MB",
        )  # fmt: skip
    for name, of in runs.items():
        for run in of:
            run["added_rss_mb"] = run["peak_rss_mb"] - resting[name]
    figures = {name: measuring.summarize(of, FIGURES) for name, of in runs.items()}
    theirs = "not run" if not with_trl else "built into this benchmark" if peer is None else f"the script {peer.name}"
    counts = ", ".join(f"{of[0]['pairs']:.0f} ({name})" for name, of in runs.items())
    text = "\n\n".join(
        [
            "# Training, side by side",
            f"{args.steps} steps of {args.batch} pairs of {side_by_side.named(pairs)}, at most {args.max_length} tokens; training pairs: "
            f"{counts}; {args.held_out} held out. {side_by_side.POLICY}, vocabulary {args.vocabulary}, random "
            f"weights; LoRA r 8 on all linear layers; one thread; median of {args.repeats} runs, which took turns. "
            f"Batches are put together at random by TRL, and here by the setting {args.order}. TRL: {theirs}.",
            measuring.describe_machine(machine),
            report(figures),
            spread(figures),
            NOTES,
        ]
    )
    document = {
        "task": asdict(task)
        | {"folder": None, "vocabulary": args.vocabulary, "pairs": side_by_side.named(pairs), **split},
        "repeats": args.repeats,
        "machine": machine,
        "resting_rss_mb": resting,
        "figures": figures,
        "claims": claims(figures),
        "runs": runs,
    }
    measuring.write_results("training", document, text)


if __name__ == "__main__":
    main()
