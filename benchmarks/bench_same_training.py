"""The same training, step for step: this project's default loop and TRL's DPOTrainer on the same batches.

    python benchmarks/bench_same_training.py [--pairs FILE] [--steps 50] [--held-out 80]

TRL gets this project's order (its rows are sorted as this project's sampler takes them, and read sequentially), the same initial
adapter, and the same schedule. Pairs that the two read differently are left out beforehand
and counted: sides that are equal after truncation, which this project drops, and truncation inside a character.
Every fast path is on. Compared are the loss of every step, and the final loss on held-out pairs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import measuring
import side_by_side
from measuring import claim, in_own_process
from side_by_side import Task


class Reordered(Task):
    """The task with its training pairs in the order in which this project's sampler takes them."""

    @property
    def train(self) -> str:
        return self.path("in_order.jsonl")


def our_ids(task: Task, output_dir: str) -> dict[str, dict[str, Any]]:
    """A row's content → its ids as this project reads them, without rows that it drops."""
    from mrpo_pipeline.dataset.prepare import prepare_splits

    found = {}
    for prepared in prepare_splits(side_by_side.recipe(task, task.path("cache"), output_dir)).values():
        for row in prepared.frame.iter_rows(named=True):
            content = key(json.loads(row["prompt"]), row["chosen"], row["rejected"])
            found[content] = {name: row[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")}
    return found


def key(prompt: Any, chosen: str, rejected: str) -> str:
    return json.dumps([[[message["role"], message["content"]] for message in prompt], chosen, rejected])


def row_key(row: dict[str, Any]) -> str:
    return key(row["prompt"], row["chosen"][0]["content"], row["rejected"][0]["content"])


def their_ids(task: Task, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row's ids as TRL's loss sees them: rendered in full, prompt and completion together truncated to the length."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.policy)

    def ids(messages: list[dict[str, str]], **options: Any) -> list[int]:
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"])

    found = []
    for row in rows:
        prompt = ids(row["prompt"], add_generation_prompt=True)
        sides = {side: ids(row["prompt"] + row[side])[: task.max_length] for side in ("chosen", "rejected")}
        found.append({"prompt": prompt, **{side: whole[len(prompt) :] for side, whole in sides.items()}})
    return found


def keep_same(task: Task, folder: str, wanted: dict[str, int]) -> dict[str, int]:
    """Keep in the task's files only this many rows that both read alike; returns how many others were seen."""
    ours = our_ids(task, folder)
    left_out = {"dropped by this project for equal sides or want of room": 0, "cut within a character": 0}
    for path, count in ((task.train, wanted["train"]), (task.held_out, wanted["held_out"])):
        kept: list[dict[str, Any]] = []
        rows = side_by_side.read_rows(path)
        seen: set[str] = set()
        for row, theirs in zip(rows, their_ids(task, rows), strict=True):
            mine = ours.get(row_key(row))
            if len(kept) == count:
                break
            if mine is None:
                left_out["dropped by this project for equal sides or want of room"] += 1
            elif mine != theirs:
                left_out["cut within a character"] += 1
            elif row_key(row) not in seen:
                seen.add(row_key(row))
                kept.append(row)
        if len(kept) < count:
            raise SystemExit(f"{Path(path).name}: of {len(rows)} pairs {len(kept)} are read alike, {count} are wanted.")
        side_by_side.write_rows(path, kept)
    return left_out


def our_run(task: Task, folder: str) -> dict[str, Any]:
    """Score and train as the commands do; returns the losses, the file of the initial adapter, and the order of the rows."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    from mrpo_pipeline.policy import trainer as trainer_module
    from mrpo_pipeline.policy.run import train_recipe
    from mrpo_pipeline.scoring import score_references

    torch.set_num_threads(1)
    told: dict[str, Any] = {}

    class Watched(trainer_module.PreferenceTrainer):
        def train(self, *args: Any, **options: Any) -> Any:
            start = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(self.model).items()}
            save_file(start, task.path("start.safetensors"))
            self._decide_prompt_sharing()
            told["order"] = [int(index) for step in self.train_sampler().steps() for index in step]
            told["ids"] = [
                {
                    name: [int(i) for i in getattr(self.train_dataset, f"{name}_ids")[row]]
                    for name in ("prompt", "chosen", "rejected")
                }
                for row in range(len(self.train_dataset))
            ]
            result = super().train(*args, **options)
            told["losses"] = [entry["loss"] for entry in self.state.log_history if "learning_rate" in entry]
            told["shared"] = self.policy_forward.is_shared
            return result

    trainer_module.PreferenceTrainer = Watched  # type: ignore[misc]
    recipe = side_by_side.recipe(task, task.path("cache"), folder, training={"logging_steps": 1})
    score_references(recipe)
    results = train_recipe(recipe)
    return told | {"held_out_loss": results["eval_loss"], "held_out_accuracy": results["eval_rewards/accuracies"]}


def their_run(task: Task, folder: str) -> dict[str, Any]:
    """TRL with that initial adapter, over the rows in the order of the file."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import PrinterCallback

    torch.set_num_threads(1)
    trainer = side_by_side.trl_trainer(
        task, folder, precompute=False, training={"logging_steps": 1, "train_sampling_strategy": "sequential"}
    )
    ids = [
        {
            "prompt": list(row["prompt_ids"]),
            **{
                side: list(row[f"{side}_ids"])[: task.max_length - len(row["prompt_ids"])]
                for side in ("chosen", "rejected")
            },
        }
        for row in trainer.train_dataset
    ]
    trainer.remove_callback(PrinterCallback)
    set_peft_model_state_dict(trainer.model, load_file(task.path("start.safetensors")))
    trainer.train()
    metrics = trainer.evaluate()
    return {
        "ids": ids,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "learning_rate" in entry],
        "held_out_loss": metrics["eval_loss"],
        "held_out_accuracy": metrics["eval_rewards/accuracies"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--held-out", type=int, default=80, help="held-out pairs")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    machine, pairs = measuring.machine(), side_by_side.find_pairs(args.pairs)
    if not side_by_side.has_trl():
        return
    wanted = {"train": args.steps * args.batch, "held_out": args.held_out}
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        task = Task(folder, args.steps, args.batch, args.max_length)
        more = {"count": 2 * wanted["train"], "held_out": 2 * args.held_out}
        side_by_side.set_up(task, pairs, vocabulary=args.vocabulary, **more)
        left_out = in_own_process(keep_same, task, folder, wanted)
        ours = in_own_process(our_run, task, task.path("ours"))
        print(f"mrpo: held-out loss {ours['held_out_loss']:.6f}", flush=True)
        rows = side_by_side.read_rows(task.train)
        reordered = Reordered(**vars(task))
        side_by_side.write_rows(reordered.train, [rows[index] for index in ours["order"]])
        theirs = in_own_process(their_run, reordered, task.path("theirs"))
        print(f"TRL: held-out loss {theirs['held_out_loss']:.6f}", flush=True)
    assert theirs["ids"] == [ours["ids"][index] for index in ours["order"]], "the two read other tokens"
    apart = [abs(mine - other) for mine, other in zip(ours["losses"], theirs["losses"], strict=True)]
    share = abs(ours["held_out_loss"] / theirs["held_out_loss"] - 1)
    some = sorted({0, 1, 4, 9, 19, args.steps // 2, args.steps - 1} & set(range(args.steps)))
    body = [
        [str(step + 1), f"{ours['losses'][step]:.6f}", f"{theirs['losses'][step]:.6f}", f"{apart[step]:.1e}"]
        for step in some
    ]
    body += [
        ["held-out loss", *(f"{run['held_out_loss']:.6f}" for run in (ours, theirs)), f"{share:.2%}"],
        ["held-out accuracy", *(f"{run['held_out_accuracy']:.4f}" for run in (ours, theirs)), ""],
    ]
    claims = [
        claim(f"largest difference from TRL of {args.steps} steps' losses", max(apart), at_most=1e-3, form="{:.1e}"),
        claim("difference from TRL in held-out loss", share, at_most=0.01, form="{:.3%}"),
    ]
    text = "\n\n".join(
        [
            "# The same training, step for step",
            f"{args.steps} steps of {args.batch} pairs of {side_by_side.named(pairs)}, at most {args.max_length} tokens, "
            f"{args.held_out} pairs held out; {side_by_side.POLICY}, vocabulary {args.vocabulary}, random weights, float32; LoRA "
            "r 8 on all linear layers, the same start; learning rate 1e-3 with the same schedule; every fast path on "
            f"({'prompts shared' if ours['shared'] else 'prompts not shared'}). Left out beforehand: "
            + ", ".join(f"{count} pairs {why}" for why, count in left_out.items()) + ".",
            measuring.describe_machine(machine),
            measuring.table(["loss of step", "mrpo", "TRL", "difference"], body),
            f"Largest difference of a step's loss: {max(apart):.1e}. This project's losses lie between "
            f"{min(ours['losses']):.3f} and {max(ours['losses']):.3f}.",
        ]
    )  # fmt: skip
    document = {
        "given": vars(args),
        "machine": machine,
        "claims": claims,
        "left_out": left_out,
        "runs": {name: {k: v for k, v in run.items() if k != "ids"} for name, run in (("mrpo", ours), ("TRL", theirs))},
    }
    measuring.write_results("same_training", document, text)


if __name__ == "__main__":
    main()
