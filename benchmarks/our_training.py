"""This project's two stages, timed from outside, with a clock added to the trainer that `mrpo train` creates."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import measuring
import side_by_side
from measuring import peak_rss_mb
from side_by_side import Task

MODULES = ("mrpo_pipeline.policy.run", "mrpo_pipeline.policy.train", "mrpo_pipeline.policy.trainer", "peft")


def score(task: Task, cache: str, output_dir: str, references: Mapping[str, str] | None = None) -> dict[str, float]:
    """Stage one: CPU seconds of reading, tokenizing, loading the reference and scoring, without imports."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import mrpo_pipeline.models.head  # noqa: F401
    from mrpo_pipeline.scoring import score_references

    torch.set_num_threads(1)
    recipe = side_by_side.recipe(task, cache, output_dir, references=references)
    began = time.process_time()
    reports = score_references(recipe)
    scored = sum(report.scored for report in reports)
    return {"score_cpu_s": time.process_time() - began, "scored": scored, "score_peak_rss_mb": peak_rss_mb()}


def train(
    task: Task,
    cache: str,
    output_dir: str,
    references: Mapping[str, str] | None = None,
    *,
    resident: int = 0,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Stage two.

    Args:
        references: name → model; by default only the policy's start.
        resident: this many references are also in memory and run at every step, as in the authors' code. Their results are
            dropped: only the cost is measured.
        training: further keys of the recipe's ``training``.
    """
    import torch

    from mrpo_pipeline.policy import trainer as trainer_module
    from mrpo_pipeline.policy.run import train_recipe

    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    clock = measuring.step_clock()

    class Timed(trainer_module.PreferenceTrainer):
        def train(self, *args: Any, **options: Any) -> Any:
            self.add_callback(clock)
            self.residents = [side_by_side.resident(task.policy) for _ in range(resident)]
            figures["prepare_cpu_s"] = time.process_time() - began
            start = time.process_time()
            result = super().train(*args, **options)
            figures["loop_cpu_s"] = (time.process_time() - start) / task.steps
            figures["peak_rss_mb"] = peak_rss_mb()
            figures["loss_last"] = [entry["loss"] for entry in self.state.log_history if "loss" in entry][-1]
            figures["pairs"] = len(self.train_dataset)
            figures["tokens_run"] = self.tokens_run
            figures["real_tokens"] = self.state.num_input_tokens_seen
            return result

        def training_step(self, model: Any, inputs: list[Any], num_items_in_batch: Any = None) -> Any:
            with torch.inference_mode():
                for forward in self.residents:
                    for batch in inputs:
                        forward(**forward.inputs(batch))
            return super().training_step(model, inputs, num_items_in_batch)

    trainer_module.PreferenceTrainer = Timed  # type: ignore[misc]
    recipe = side_by_side.recipe(task, cache, output_dir, references=references, training=training)
    began = time.process_time()
    results = train_recipe(recipe)
    figures["step_cpu_s"] = sum(clock.cpu) / len(clock.cpu)
    figures["steps_cpu_s"] = clock.cpu
    figures["accuracy"] = results.get("eval_rewards/accuracies", float("nan"))
    return figures
