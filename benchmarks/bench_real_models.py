"""Does a second reference help? Every target and loss with two real models on real pairs, over several seeds, with drift.

    python benchmarks/bench_real_models.py --models DIR --pairs FILE.jsonl [--train 120] [--seeds 3] [--folder DIR]

The policy is SmolLM2-135M. Its references are itself (the anchor), Gemma-3-270M, and SmolLM2 tuned on the chosen answers of
other prompts. Splits are by prompt: pairs for tuning, for training, for choosing settings, and held out. `--models` is a folder with
`smollm2-135m-instruct` and `gemma-3-270m`; `--folder` keeps finished work, so the same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import torch

from mrpo_pipeline.compare import compare_recipe
from mrpo_pipeline.policy.merge import merge_adapter
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.scoring import score_references
from mrpo_pipeline.terminal import quiet_libraries, show_messages

Row = dict[str, Any]

SMOLLM, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
METHODS: dict[str, dict[str, Any]] = {
    "mrpo": {},
    "mrpo-spans": {"aggregate_over": "span"},
    "geometric": {"aggregate": "geometric"},
    "arithmetic": {"aggregate": "arithmetic"},
    "hypo": {"loss": "hypo"},
}
RESULTS = "eval_results.json"
TRAINING = {"gradient_accumulation_steps": 1, "save_strategy": "no", "use_cpu": True}
LORA = {"r": 8, "alpha": 16, "target_modules": "all-linear"}


def characters(row: Row) -> int:
    """Of the prompt and the longer answer."""
    sizes = {side: sum(len(message["content"]) for message in row[side]) for side in ("prompt", "chosen", "rejected")}
    return sizes["prompt"] + max(sizes["chosen"], sizes["rejected"])


def split_by_prompt(rows: Sequence[Row], sizes: dict[str, int]) -> dict[str, list[Row]]:
    """Assign prompts, in the order of their hash, to one part after another until each has enough pairs."""
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(json.dumps(row["prompt"]), []).append(row)
    prompts = sorted(by_prompt, key=lambda prompt: hashlib.sha256(prompt.encode()).hexdigest())
    parts: dict[str, list[Row]] = {}
    for name, size in sizes.items():
        part = parts[name] = []
        while len(part) < size and prompts:
            part += by_prompt[prompts.pop()]
        if len(part) < size:
            raise SystemExit(
                f"There are {len(part)} pairs for {name}, and {size} are wanted: lower --{name} or raise --characters."
            )
        random.Random(0).shuffle(part)
    return parts


def tune(policy: Path, pairs: Path, folder: Path) -> Path:
    """The policy's start, tuned on the chosen answers with this project's own training, and merged."""
    digest = hashlib.sha256(pairs.read_bytes()).hexdigest()[:8]
    merged, output = folder / f"tuned-{digest}", folder / f"tuning-{digest}"
    if not merged.is_dir():
        document = {
            "pairs": {"train": str(pairs)},
            "policy": {"model": str(policy), "lora": LORA},
            "method": {"reference": "none", "loss": "sft"},
            "training": TRAINING | {"per_device_train_batch_size": 8, "learning_rate": 3e-4, "num_train_epochs": 2},
            "output_dir": str(output),
        }
        train_recipe(parse_recipe(document))
        merge_adapter(output, merged)
    return merged


def recipe_of(
    folder: Path, references: dict[str, Path], args: argparse.Namespace, beta: float, learning_rate: float
) -> Any:
    return parse_recipe(
        {
            "pairs": {"train": str(folder / "train.jsonl"), "eval": str(folder / "held-out.jsonl")},
            "policy": {"model": str(references["anchor"]), "lora": LORA},
            "references": {name: {"model": str(model), "dtype": "float32"} for name, model in references.items()},
            "cache": str(folder / "cache"),
            "scoring": {"engine": "transformers"},
            "method": {"beta": beta},
            "training": TRAINING | {
                "learning_rate": learning_rate, "num_train_epochs": args.epochs, "per_device_train_batch_size": args.batch,
            },
            "evaluation": {"samples": 0},
            "compare": {"seeds": list(range(args.seeds)), "processes": args.processes, "methods": METHODS},
            "output_dir": str(folder / "comparison"),
        }
    )  # fmt: skip


def sweep(
    folder: Path, references: dict[str, Path], args: argparse.Namespace
) -> dict[tuple[float, float], tuple[float, float]]:
    """(share preferred, share moved) on the third split by (β, learning rate), for DPO against the anchor."""
    found = {}
    for beta, rate in itertools.product(args.beta, args.learning_rate):
        output = folder / f"sweep-{beta:g}-{rate:g}"
        recipe = recipe_of(folder, {"anchor": references["anchor"]}, args, beta, rate)
        pairs = recipe.pairs.model_copy(update={"eval": str(folder / "sweep.jsonl")})
        method = recipe.method.model_copy(update={"name": "dpo"})
        recipe = recipe.model_copy(update={"pairs": pairs, "method": method, "output_dir": str(output)})
        if not (output / RESULTS).is_file():
            score_references(recipe)
            train_recipe(recipe)
        results = json.loads((output / RESULTS).read_text(encoding="utf-8"))
        found[beta, rate] = (results["eval_accuracy/policy"], results["eval_accuracy/anchor"])
    return found


def lines_of(document: dict[str, Any]) -> str:
    """A table of the comparison: accuracy, share of pairs moved, and drift."""

    def figure(metrics: dict[str, Any], name: str, form: str) -> str:
        found = metrics[name]
        if not isinstance(found, dict):
            return form.format(found)
        ends = "" if found["low"] is None else f" ({form.format(found['low'])} to {form.format(found['high'])})"
        return form.format(found["mean"]) + ends

    columns = {
        "prefers chosen": ("accuracy/policy", "{:.1%}"),
        "prefers chosen, per token": ("accuracy/policy_per_token", "{:.1%}"),
        "moved to chosen": ("accuracy/anchor", "{:.1%}"),
        "drift, chosen": ("drift/chosen_per_token", "{:+.3f}"),
        "drift, rejected": ("drift/rejected_per_token", "{:+.3f}"),
    }
    body = [["start", "", *(figure(document["start"], name, form) if name in document["start"] and name != "accuracy/anchor"
             else "" for name, form in columns.values())]]  # fmt: skip
    for method in document["methods"]:
        beta = method["method"]["beta"]
        body.append(
            [method["name"], f"{beta:g}", *(figure(method["metrics"], name, form) for name, form in columns.values())]
        )
    return measuring.table(["method", "β", *columns], body)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", required=True, help=f"folder with {SMOLLM} and {GEMMA}")
    parser.add_argument("--pairs", required=True, help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--folder", default="runs/real-models")
    parser.add_argument("--characters", type=int, default=350, help="of the prompt and the longer answer, at most")
    parser.add_argument("--tuned", type=int, default=60, help="pairs whose chosen answers the tuned reference learns")
    parser.add_argument("--train", type=int, default=120)
    parser.add_argument("--sweep", type=int, default=80, help="pairs of the third split")
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--beta", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[5e-4, 2e-3])
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    machine, folder = measuring.machine(), Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    models = Path(args.models)
    rows = [json.loads(line) for line in Path(args.pairs).read_text(encoding="utf-8").splitlines()]
    short = [row for row in rows if characters(row) <= args.characters]
    sizes = {"held-out": args.held_out, "tuned": args.tuned, "sweep": args.sweep, "train": args.train}
    parts = split_by_prompt(short, sizes)
    for name, part in parts.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    torch.set_num_threads(1)
    show_messages()
    with measuring.one_thread(), quiet_libraries():
        tuned = tune(models / SMOLLM, folder / "tuned.jsonl", folder)
        references = {"anchor": models / SMOLLM, "gemma": models / GEMMA, "tuned": tuned}
        tried = sweep(folder, references, args)
        beta, rate = max(tried, key=lambda one: tried[one])
        recipe = recipe_of(folder, references, args, beta, rate)
        score_references(recipe)
        comparison = compare_recipe(recipe)
    document = comparison.as_dict()
    verdict = document["verdict"]
    settings = "; ".join(
        f"β {one:g} at {lr:g}: {preferred:.1%} preferred, {moved:.1%} moved"
        for (one, lr), (preferred, moved) in tried.items()
    )
    text = "\n\n".join(
        [
            "# Does a further reference help? Two real models, real pairs",
            f"{len(short):,} of {len(rows):,} pairs of {Path(args.pairs).name} have at most {args.characters} characters in the prompt and "
            f"the longer answer. By prompt they are split into {document['held_out']} held-out pairs ({document['prompts']} prompts), "
            f"{args.train} to train on, {args.sweep} to choose settings by, and {args.tuned} whose chosen answers the tuned one learnt. "
            f"Policy and anchor: SmolLM2-135M; LoRA r 8 on all linear layers, {args.epochs:g} epoch, {args.batch} pairs a step; "
            f"seeds: {args.seeds}; float32. β and learning rate are chosen once, for all methods, by DPO against the anchor on the third "
            f"split: {settings}. So β {beta:g} at {rate:g}; SimPO has β 2, γ 1 and nats per token.",
            lines_of(document),
            "In brackets: 95% over pairs and seeds. Drift is the change of log-probs from the anchor, nats a token, on the held-out pairs.",
            "\n".join([f"**{verdict['sentence']}**", *verdict["sentences"]]),
            measuring.describe_machine(machine),
        ]
    )
    measuring.write_results("real_models", {"machine": machine, "comparison": document, "claims": []}, text)


if __name__ == "__main__":
    main()
