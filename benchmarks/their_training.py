"""TRL's DPOTrainer, timed from outside in its own process: like the peer script, with the settings of this project's run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import measuring
import side_by_side
from measuring import peak_rss_mb
from side_by_side import Task

MODULES = ("datasets", "peft", "trl.trainer.dpo_trainer")


def train(
    task: Task, output_dir: str, *, precompute: bool, training: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One run, from the pairs file to the evaluation.

    Args:
        precompute: score the reference before training; otherwise it runs in every step.
        training: further settings of TRL's ``DPOConfig``.
    """
    import torch
    from trl.trainer import dpo_trainer  # noqa: F401 - imports do not count as preparation

    torch.set_num_threads(1)
    clock = measuring.step_clock()
    began = time.process_time()
    trainer = side_by_side.trl_trainer(task, output_dir, precompute=precompute, callbacks=[clock], training=training)
    prepared = time.process_time() - began
    began = time.process_time()
    trainer.train()
    loop = time.process_time() - began
    peak = peak_rss_mb()
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    return {
        "step_cpu_s": sum(clock.cpu) / len(clock.cpu),
        "steps_cpu_s": clock.cpu,
        "loop_cpu_s": loop / task.steps,
        "prepare_cpu_s": prepared,
        "peak_rss_mb": peak,
        "loss_last": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1],
        "accuracy": metrics.get("eval_rewards/accuracies"),
        "pairs": len(trainer.train_dataset),
    }
