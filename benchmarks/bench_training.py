"""Stage two side by side with TRL's DPOTrainer: CPU seconds per optimizer step, preparation, and memory.

    python benchmarks/bench_training.py [--pairs FILE] [--peer SCRIPT] [--steps 100] [--repeats 5] [--vocabulary 8192]

The same tiny Llama, pairs, adapter, batch, lengths and schedule for all, on one thread; the runs take turns, each in a
process of its own. TRL runs twice: with the reference in every step (its default), and with its log-probs precomputed.
This project runs as `mrpo score-refs` and `mrpo train` do: metrics, logging, progress lines and the check of the start on.
CPU seconds are the figure to look at on a machine that is shared. A repeat takes some ten minutes on one core.
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
from measuring import in_own_process, peak_rss_mb
from our_training import MODULES as OUR_MODULES
from our_training import score, train
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
THEIR_MODULES = ("datasets", "peft", "trl.trainer.dpo_trainer")

Runs = dict[str, list[dict[str, Any]]]

NOTES = """\
In brackets: how many times this project's. A step is timed from its begin to its end, as callbacks see it; the whole loop
takes in the loading of batches and the logging. Preparing is reading, tokenizing, precomputing the reference or looking it
up, and for this project also loading the policy and checking its start; scoring is its stage one with the loading of the
reference, done once for all runs on these pairs. Memory is the peak until training ends; at rest is a process with the same
imports and the policy loaded. Batches are made by {order} in this project and at random in TRL; pairs whose sides are equal
once they are cut are left out by this project."""


def run_ours(task: Task, folder: str) -> dict[str, Any]:
    cache = str(Path(folder) / "cache")
    scored: dict[str, Any] = in_own_process(score, task, cache, folder)
    return {**scored, **in_own_process(train, task, cache, folder)}


def run_embedded_peer(task: Task, folder: str, precompute: bool) -> dict[str, Any]:
    """What the peer script does, where that script is not here. Runs in a process of its own."""
    import torch
    from trl.trainer import dpo_trainer  # noqa: F401 - imports are no part of the preparation

    torch.set_num_threads(1)
    clock = measuring.step_clock()
    began = time.process_time()
    trainer = side_by_side.trl_trainer(task, folder, precompute=precompute, callbacks=[clock])
    prepared = time.process_time() - began
    began = time.process_time()
    trainer.train()
    loop = time.process_time() - began
    peak = peak_rss_mb()
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    return {
        "step_cpu_s": sum(clock.cpu) / len(clock.cpu),
        "loop_cpu_s": loop / task.steps,
        "prepare_cpu_s": prepared,
        "peak_rss_mb": peak,
        "loss_last": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1],
        "accuracy": metrics.get("eval_rewards/accuracies"),
        "pairs": len(trainer.train_dataset),
    }


def run_peer(task: Task, folder: str, precompute: bool, peer: Path | None, split: dict[str, int]) -> dict[str, Any]:
    """One run of TRL, by the peer script or by what is built in, with fresh caches of its own."""
    if peer is None:
        return dict(in_own_process(run_embedded_peer, task, folder, precompute))
    settings = {
        "--policy": task.policy,
        "--pairs": task.path("pairs.jsonl"),
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
    """The peer script; None where there is none."""
    path = Path(asked) if asked is not None else SHARED_PEER
    if path.is_file():
        return path
    if asked is not None:
        raise SystemExit(f"--peer {asked}: there is no such file.")
    print(f"{path} is not here: the same run of TRL that is built into this benchmark is used instead.")
    return None


def report(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table of medians, TRL's as multiples of this project's beside them."""

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


def spread(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    parts = [f"{name} {of['step_cpu_s']['low']:.4f}–{of['step_cpu_s']['high']:.4f}" for name, of in figures.items()]
    return "CPU s/step from the lowest to the highest run: " + ", ".join(parts) + "."


def measure(
    task: Task, peer: Path | None, with_trl: bool, repeats: int, split: dict[str, int]
) -> tuple[Runs, dict[str, float]]:
    """Every contestant's runs, taking turns, and the memory of each at rest (MB)."""
    contestants: dict[str, Callable[[str], dict[str, Any]]] = {OURS: lambda out: run_ours(task, out)}
    if with_trl:
        contestants[THEIRS_PRECOMPUTED] = lambda out: run_peer(task, out, True, peer, split)
        contestants[THEIRS] = lambda out: run_peer(task, out, False, peer, split)
    resting = {
        name: in_own_process(side_by_side.resting_rss_mb, task.policy, OUR_MODULES if name == OURS else THEIR_MODULES)
        for name in contestants
    }
    runs: Runs = {name: [] for name in contestants}
    for repeat in range(repeats):
        for number, (name, contestant) in enumerate(contestants.items()):
            run = contestant(task.path(f"run-{repeat}-{number}"))
            run["added_rss_mb"] = run["peak_rss_mb"] - resting[name]
            runs[name].append(run)
            print(f"{repeat + 1} of {repeats}, {name}: {run['step_cpu_s']:.4f} CPU s/step", flush=True)
    return runs, resting


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--peer", help="the script that runs TRL")
    parser.add_argument("--count", type=int, default=400, help="training pairs")
    parser.add_argument("--held-out", type=int, default=200, help="held-out pairs, no prompt shared with training")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--order", default="random", help="this project's train_sampling_strategy")
    args = parser.parse_args()
    machine = measuring.machine()
    pairs, with_trl = side_by_side.find_pairs(args.pairs), side_by_side.has_trl()
    peer = find_peer(args.peer) if with_trl else None
    split = {"count": args.count, "held_out": args.held_out}
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        task = Task(folder, args.steps, args.batch, args.max_length, order=args.order)
        side_by_side.set_up(task, pairs, vocabulary=args.vocabulary, **split)
        runs, resting = measure(task, peer, with_trl, args.repeats, split)
    figures = {name: measuring.summarize(of, FIGURES) for name, of in runs.items()}
    theirs = "not run" if not with_trl else "built into this benchmark" if peer is None else f"the script {peer.name}"
    counts = ", ".join(f"{of[0]['pairs']:.0f} ({name})" for name, of in runs.items())
    text = "\n\n".join(
        [
            "# Training, side by side",
            f"{args.steps} steps of {args.batch} pairs of {side_by_side.named(pairs)}, at most {args.max_length} tokens; training pairs: "
            f"{counts}; {args.held_out} held out. {side_by_side.POLICY}, vocabulary {args.vocabulary}, random "
            f"weights; LoRA r 8 on all linear layers; one thread; median of {args.repeats} runs, which took turns. "
            f"TRL: {theirs}.",
            measuring.describe_machine(machine),
            report(figures),
            spread(figures),
            NOTES.format(order=args.order),
        ]
    )
    document = {
        "task": asdict(task)
        | {"folder": None, "vocabulary": args.vocabulary, "pairs": side_by_side.named(pairs), **split},
        "machine": machine,
        "resting_rss_mb": resting,
        "figures": figures,
        "runs": runs,
    }
    measuring.write_results("training", document, text)


if __name__ == "__main__":
    main()
