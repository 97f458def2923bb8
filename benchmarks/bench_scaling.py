"""How a training step's cost grows with the length of the pairs and with their number in a batch, here and in TRL.

    python benchmarks/bench_scaling.py [--pairs FILE] [--steps 4] [--lengths 128 256 512 1024] [--batches 1 2 4 8 16] [--jobs 1]

Pairs are cut out of real text so that both sides of every pair have exactly the given length, nearly half of it prompt: these
figures include no padding and no mixed lengths. Float32, one thread, each run in its own process. TRL has
its reference precomputed. bench_references.py measures the cost by the number of references.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import measuring
import our_training
import side_by_side
import their_training
from measuring import claim, in_own_process
from side_by_side import Task

OURS, TRL = "mrpo", "TRL, precomputed"
FIGURES = ("step_cpu_s", "added_rss_mb")
LENGTH, BATCH = 256, 4

NOTES = """\
Steps are CPU seconds, the median over a run's steps but the first; memory is the peak over what the process takes at rest,
imports done and the policy loaded. In brackets: times this project's. A side of length L has L tokens, prompt and completion."""


def rows_of_length(text: str, length: int, count: int) -> list[dict[str, Any]]:
    """Pairs whose prompts take nearly half of the length in tokens, and whose completions are longer than the rest and are cut there."""
    # A token of a byte-level BPE of 8,192 trained on the text is about four characters.
    prompt, completion = int(1.6 * length), 6 * length
    starts = [number * (prompt + 2 * completion) % (len(text) // 2) for number in range(count)]
    rows = []
    for number, start in enumerate(starts):
        ends = [start, start + prompt, start + prompt + completion, start + prompt + 2 * completion]
        first, second, third = (text[low:high].strip() for low, high in pairwise(ends))
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"{number}. {first}"}],
                "chosen": [{"role": "assistant", "content": second}],
                "rejected": [{"role": "assistant", "content": third}],
            }
        )
    return rows


def run(task: Task, name: str, resting: dict[str, float], output: str, _: int) -> dict[str, Any]:
    if name == OURS:
        cache = str(Path(output) / "cache")
        in_own_process(our_training.score, task, cache, output)
        found: dict[str, Any] = in_own_process(our_training.train, task, cache, output)
    else:
        found = in_own_process(their_training.train, task, output, precompute=True)
    found["step_cpu_s"] = statistics.median(found["steps_cpu_s"][1:])
    found["added_rss_mb"] = found["peak_rss_mb"] - resting[name]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages: their text is used"
    )
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a run, after one that is not")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024], help=f"at batch {BATCH}")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16], help=f"at length {LENGTH}")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    args = parser.parse_args()
    machine = measuring.machine()
    names = [OURS, *([TRL] if side_by_side.has_trl() else [])]
    points = sorted({(length, BATCH) for length in args.lengths} | {(LENGTH, batch) for batch in args.batches})
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        pairs = side_by_side.find_pairs(args.pairs)
        rows = side_by_side.read_rows(*pairs)
        text = " ".join(message["content"] for row in rows for part in row.values() for message in part)
        base = Task(folder, args.steps + 1)
        side_by_side.set_up(base, pairs, count=1, held_out=0, vocabulary=args.vocabulary)
        modules = {OURS: our_training.MODULES, TRL: their_training.MODULES}
        resting = {name: in_own_process(measuring.resting_rss_mb, base.policy, modules[name]) for name in names}
        contestants = {}
        for length, batch in points:
            place = Path(folder) / f"{length}-{batch}"
            place.mkdir()
            (place / "policy").symlink_to(base.policy)
            task = Task(str(place), args.steps + 1, batch, length)
            side_by_side.write_rows(task.train, rows_of_length(text, length, task.steps * batch))
            side_by_side.write_rows(task.held_out, [])
            for name in names:
                contestants[f"{name}, length {length}, batch {batch}"] = partial(run, task, name, resting)
        runs = measuring.take_turns(
            contestants, args.repeats, folder, jobs=args.jobs,
            line=lambda found: f"{found['step_cpu_s']:.3f} CPU s/step, {found['added_rss_mb']:.0f} MB over resting",
        )  # fmt: skip
    figures = {
        name: [
            {"length": length, "batch": batch}
            | {
                figure: statistics.median(found[figure] for found in runs[f"{name}, length {length}, batch {batch}"])
                for figure in FIGURES
            }
            for length, batch in points
        ]
        for name in names
    }

    def cell(number: int, name: str, figure: str, digits: int) -> str:
        found, ours = figures[name][number][figure], figures[OURS][number][figure]
        return f"{found:,.{digits}f}" + (f" ({found / ours:.2f}×)" if name != OURS else "")

    header = ["length, batch", *(f"{name}, {what}" for what in ("CPU s/step", "MB above resting") for name in names)]
    body = [
        [
            f"{length}, {batch}",
            *(
                cell(number, name, figure, digits)
                for figure, digits in (("step_cpu_s", 3), ("added_rss_mb", 0))
                for name in names
            ),
        ]
        for number, (length, batch) in enumerate(points)
    ]
    claims = [
        claim(f"TRL precomputed ÷ mrpo, CPU seconds of a step, length {length}, batch {batch}",
              figures[TRL][number]["step_cpu_s"] / figures[OURS][number]["step_cpu_s"])
        for number, (length, batch) in enumerate(points)
        if TRL in names and (length, batch) in {points[0], points[-1]}
    ]  # fmt: skip
    text_of_results = "\n\n".join(
        [
            "# A step's cost by length and batch",
            f"{args.steps} timed steps a run, median of {args.repeats} runs; text of {side_by_side.named(pairs)}; "
            f"{side_by_side.POLICY}, vocabulary {args.vocabulary}, random weights, float32; LoRA r 8 on all linear layers; one "
            "thread.",
            measuring.describe_machine(machine),
            measuring.table(header, body),
            NOTES,
        ]
    )
    document = {"given": vars(args), "machine": machine, "figures": figures, "claims": claims, "runs": runs}
    measuring.write_results("scaling", document, text_of_results)


if __name__ == "__main__":
    main()
