"""A complete comparison on real pairs with the demo's references: its table, and its wall time beside references in memory.

    python benchmarks/bench_compare.py [--pairs FILE …] [--seeds 0,1,2] [--memory-seeds 0] [--models DIR]

The pairs are the shared ones, if available. **Cached** is `mrpo score-refs` and `mrpo compare`. **In memory** is the same
comparison, run by run in one process, with the references that a method trains against in memory beside the policy. They run at
every step, as the authors' code does: on the policy's token ids, wrapped to their vocabularies. Their results are dropped, so both
train the same: only the cost is compared. Both sides are timed in one process at a time on one thread; the time with several
processes is reported separately.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import side_by_side
from measuring import claim, describe_machine, in_own_process, machine, one_thread, table, write_results
from side_by_side import SHARED_LONG_PAIRS, SHARED_PAIRS, find_pairs, named

NAMES = ("base", "abacus", "atlas")


def recipe_of(pairs: list[str], models: str, scratch: str, seeds: list[int], output: str, processes: Any) -> Any:
    from mrpo_pipeline.recipe import parse_recipe

    return parse_recipe(
        {
            "pairs": {"train": pairs, "eval_fraction": 0.25},
            "policy": {"model": f"{models}/base", "lora": {"target_modules": "all-linear"}},
            "references": {name: {"model": f"{models}/{name}"} for name in NAMES},
            "cache": f"{scratch}/cache",
            "limits": {"max_prompt_length": 128, "max_length": 256},
            "scoring": {"engine": "transformers"},
            "training": {
                "learning_rate": 1.0e-3,
                "num_train_epochs": 1,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 1,
                "warmup_steps": 0.1,
                "save_strategy": "no",
            },
            "compare": {
                "methods": {
                    "multi-dpo": {"name": "multi-dpo"},
                    "mrpo": {},
                    "mrpo-uniform": {"weights": "uniform"},
                    "geometric": {"aggregate": "geometric", "weights": "uniform"},
                },
                "seeds": seeds,
                "processes": processes,
            },
            "output_dir": f"{scratch}/{output}",
        }
    )


def run(given: tuple[Any, ...], *, resident: bool = False, score: bool = False) -> dict[str, Any]:
    """Score or compare in this process; returns wall seconds and the comparison."""
    import torch

    from mrpo_pipeline.compare import compare_recipe
    from mrpo_pipeline.policy import trainer as trainer_module
    from mrpo_pipeline.scoring import score_references
    from mrpo_pipeline.terminal import show_messages

    torch.set_num_threads(1)
    show_messages()
    recipe = recipe_of(*given)
    models = given[1]

    class InMemory(trainer_module.PreferenceTrainer):
        def train(self, *args: Any, **options: Any) -> Any:
            method = Path(self.args.output_dir).parent.name
            single = [method.removeprefix("dpo-")] if method.startswith("dpo-") else NAMES
            wanted = [] if self.method.reference == "none" else single
            self.residents = [side_by_side.resident(f"{models}/{name}") for name in wanted]
            return super().train(*args, **options)

        def training_step(self, model: Any, inputs: list[Any], num_items_in_batch: Any = None) -> Any:
            with torch.inference_mode():
                for forward in self.residents:
                    size = forward.head.model.get_input_embeddings().num_embeddings
                    for batch in inputs:
                        tokens = forward.inputs(batch)
                        wrapped = {name: tokens[name] % size for name in ("input_ids", "targets")}
                        forward(**{**tokens, **wrapped})
            return super().training_step(model, inputs, num_items_in_batch)

    if resident:
        trainer_module.PreferenceTrainer = InMemory  # type: ignore[misc]
    began = time.monotonic()
    if score:
        score_references(recipe)
        return {"wall_s": time.monotonic() - began}
    document = compare_recipe(recipe).as_dict()
    seconds = {one["name"]: sum(one["train_seconds"]) for one in document["methods"]}
    return {"wall_s": time.monotonic() - began, "train_s": seconds, "document": document}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+")
    parser.add_argument("--models", help="the demo's models; made where not given")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2])
    parser.add_argument(
        "--memory-seeds", type=_numbers, default=[0], help="of the comparison with references in memory"
    )
    parser.add_argument("--scratch", help="where caches and runs lie; kept if given")
    given = parser.parse_args()
    found = machine()
    pairs = find_pairs(given.pairs, (SHARED_PAIRS, SHARED_LONG_PAIRS))
    with tempfile.TemporaryDirectory() as temporary, one_thread():
        from mrpo_pipeline.demo.models import make_models

        scratch = given.scratch or temporary
        models = given.models or f"{scratch}/models"
        make_models(Path(models))
        start = ([str(one) for one in pairs], models, scratch)
        scored = in_own_process(run, (*start, given.seeds, "cached", 1), score=True)
        cached = in_own_process(run, (*start, given.memory_seeds, "alone", 1))
        memory = in_own_process(run, (*start, given.memory_seeds, "memory", 1), resident=True)
        whole = in_own_process(run, (*start, given.seeds, "cached", "auto"))
    document = whole["document"]
    ratio = sum(memory["train_s"].values()) / sum(cached["train_s"].values())
    body = [
        [name, f"{seconds:.0f}", f"{memory['train_s'][name]:.0f}", f"{memory['train_s'][name] / seconds:.2f}×"]
        for name, seconds in cached["train_s"].items()
    ]
    from mrpo_pipeline.compare.table import terminal

    text = (
        f"{named(pairs)}; the demo's references ({', '.join(NAMES)}), policy base; seeds {given.seeds}\n"
        f"{describe_machine(found)}\n\n{terminal(document)}\n\n"
        f"One process, seeds {given.memory_seeds}, seconds of training:\n\n"
        + table(["method", "cached", "in memory", "ratio"], body)
        + f"\n\nAll of it in one process: cached {cached['wall_s']:.0f} s (and {scored['wall_s']:.0f} s of scoring, once for any "
        f"number of methods and seeds), in memory {memory['wall_s']:.0f} s. The whole comparison, seeds {given.seeds}, in "
        f"{document['costs']['processes']} processes: {whole['wall_s']:.0f} s."
    )
    claims = [claim("a comparison with references in memory ÷ cached, seconds of training", ratio, at_least=1.0)]
    write_results(
        "compare", {"machine": found, "claims": claims, "memory": memory, "cached": cached, "whole": whole}, text
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
