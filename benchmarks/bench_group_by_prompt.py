"""Training on ranked answers: each completion of a step run once, beside pair by pair. CPU seconds per pair, and the losses.

    python benchmarks/bench_group_by_prompt.py [--model DIR] [--pairs FILE …] [--steps 50]

Prompts with seven answers are 21 pairs each. Both ways train on the same pairs in every step, on one thread, alternating step by
step in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measuring
import side_by_side
from bench_shared_prompts import ANSWERS, ranked_rows
from measuring import claim

PAIRS = ANSWERS * (ANSWERS - 1) // 2
MOST = 0.4


def examples_of(path: str, model: str) -> Any:
    """The pairs as stage two reads them, with random reference sums, which do not affect the time."""
    import numpy as np

    from mrpo_pipeline.dataset.examples import PreferenceExamples
    from mrpo_pipeline.dataset.prepare import prepare_splits
    from mrpo_pipeline.recipe import parse_recipe

    named = {"pairs": {"train": path}, "policy": {"model": model}, "references": {"base": {"model": model}}}
    frame = prepare_splits(parse_recipe(named | {"cache": "unused", "output_dir": "unused"}))["train"].frame
    ids = {
        side: [np.array(row, np.int32) for row in frame[f"{side}_ids"].to_list()]
        for side in ("prompt", "chosen", "rejected")
    }
    chosen, rejected = (-2.0 * np.array([len(row) for row in ids[side]]) for side in ("chosen", "rejected"))
    return PreferenceExamples(
        pair_ids=frame["pair_id"].to_list(), prompt_ids=ids["prompt"], chosen_ids=ids["chosen"], rejected_ids=ids["rejected"],
        reference_chosen=chosen[:, None], reference_rejected=rejected[:, None], weights=np.ones((len(chosen), 1)),
        anchor_chosen=chosen, anchor_rejected=rejected,
    )  # fmt: skip


def training(
    examples: Any, model: str, folder: str, steps: int, *, grouped: bool
) -> Iterator[tuple[float, float, int]]:
    """For each step: CPU seconds, loss, and the number of tokens run."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from mrpo_pipeline.policy.arguments import fast_paths, training_arguments
    from mrpo_pipeline.policy.sampler import PairLoader, StepDataset
    from mrpo_pipeline.policy.trainer import PreferenceTrainer
    from mrpo_pipeline.recipe import Method

    settings = {"per_device_train_batch_size": PAIRS, "gradient_accumulation_steps": 1, "max_steps": steps, "use_cpu": True,
                "save_strategy": "no", "learning_rate": 1e-4, "group_by_prompt": True}  # fmt: skip
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"]))
    arguments = training_arguments(settings, folder, dtype="float32", evaluates=False)
    trainer = PreferenceTrainer(policy, arguments, Method(), examples, fast=fast_paths(settings))
    sampler = trainer.train_sampler()
    if not grouped:
        trainer.distinct = None
    loader = PairLoader.of(StepDataset(examples, trainer.distinct), sampler, arguments)
    trainer.create_optimizer_and_scheduler(steps)
    done = 0
    while done < steps:
        for step in loader:
            before, began = trainer.tokens_run, time.process_time()
            loss = trainer.training_step(trainer.model, step, sum(batch["pairs"] for batch in step))
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
            trainer.model.zero_grad()
            yield time.process_time() - began, float(loss), trainer.tokens_run - before
            done += 1
            if done == steps:
                break


def run(model: str, path: str, folder: str, steps: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    examples = examples_of(path, model)
    ways = {name: training(examples, model, folder, steps, grouped=name == "grouped") for name in ("grouped", "pairs")}
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    for step in range(steps):
        for name in list(ways) if step % 2 == 0 else reversed(list(ways)):
            found[name].append(next(ways[name]))
        print(
            f"step {step + 1} of {steps}: " + ", ".join(f"{name} {of[-1][0]:.2f} CPU s" for name, of in found.items()),
            flush=True,
        )
    apart = max(abs(a[1] - b[1]) / abs(b[1]) for a, b in zip(*found.values(), strict=True))
    return {
        "cpu_s_per_pair": {
            name: statistics.median(one[0] for one in of[1:] or of) / PAIRS for name, of in found.items()
        },
        "tokens": {name: sum(one[2] for one in of) for name, of in found.items()},
        "losses": {name: [one[1] for one in of] for name, of in found.items()},
        "largest_difference_of_losses": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--model", help="a model folder with its tokenizer; a tiny Llama of random weights if not given"
    )
    parser.add_argument(
        "--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages, whose texts are taken"
    )
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    machine = measuring.machine()
    pairs = side_by_side.find_pairs(args.pairs)
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        model = args.model
        if model is None:
            task = side_by_side.Task(folder)
            side_by_side.set_up(task, pairs, count=60, held_out=0, vocabulary=8192)
            model = task.policy
        rows = [json.loads(line) for line in pairs[0].read_text(encoding="utf-8").splitlines()]
        ranked = Path(folder) / "ranked.jsonl"
        ranked.write_text("".join(json.dumps(row) + "\n" for row in ranked_rows(rows, args.prompts)), encoding="utf-8")
        found = measuring.in_own_process(run, model, str(ranked), folder, args.steps)
    seconds, tokens = found["cpu_s_per_pair"], found["tokens"]
    share = seconds["grouped"] / seconds["pairs"]
    text = "\n\n".join(
        [
            "# Ranked answers in training",
            f"{args.prompts} prompts with {ANSWERS} answers, {PAIRS} pairs in a step, {args.steps} steps; {Path(model).name}, float32, "
            "one thread; median of the steps, which took turns.",
            measuring.describe_machine(machine),
            measuring.table(
                ["", "CPU s per pair", "tokens run"],
                [[name, f"{seconds[name]:.4f}", f"{tokens[name]:,}"] for name in seconds],
            ),
            f"Grouped by prompt a pair takes {share:.2f} of its CPU seconds. Losses of the {args.steps} steps differ by "
            f"{found['largest_difference_of_losses']:.0e} of theirs at most.",
        ]
    )
    claims = [
        claim("Training on ranked answers grouped by prompt ÷ pair by pair, CPU s per pair", share, at_most=MOST),
        claim(
            "Largest relative difference of their losses",
            found["largest_difference_of_losses"],
            at_most=1e-5,
            form="{:.0e}",
        ),
    ]
    measuring.write_results("group_by_prompt", {"machine": machine, "figures": found, "claims": claims}, text)


if __name__ == "__main__":
    main()
