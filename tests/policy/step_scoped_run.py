"""Small training runs whose targets or loss depend on earlier steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import training_run
from tiny_methods import settings_of
from tiny_policy import make_examples

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.policy.train import train_policy
from mrpo_pipeline.recipe import Lora, Method, Policy
from mrpo_pipeline.targets.weights import adaptive

NAMES = ["base", "other", "third"]
TRAINING = {**training_run.TRAINING, "save_total_limit": None}
STEPS = training_run.STEPS
# The weights and the loss of each kind of run.
KINDS: dict[str, dict[str, Any]] = {
    "sliding-window": {"weights": "sliding-window", "window": 5},
    "sliding-window-multi": {
        "name": "multi-dpo", "weights": "sliding-window", "window": 5, "temperature": 2.0, "floor": 0.1, "loss": "minor-dpo"
    },
    "thompson": {"weights": "thompson", "pairs": 6},
    "thompson-every-2": {"weights": "thompson", "pairs": 6, "every": 2, "floor": 0.1},
    "minor-dpo": {"loss": "minor-dpo"},
    "mpo": {"loss": {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}},
    "modpo": {"loss": "modpo", "modpo": {"other": {"weight": 0.4}}},
}  # fmt: skip


def method_of(kind: str) -> Method:
    return settings_of(NAMES, **{"beta": 0.3, **KINDS[kind]})[0]


def examples_of(kind: str, count: int = 10, seed: int = 0) -> PreferenceExamples:
    examples = make_examples(count, seed=seed, references=3)
    method = method_of(kind)
    if method.is_step_scoped(NAMES):
        examples.step_references = NAMES
        examples.weights = adaptive(examples.reference_chosen - examples.reference_rejected)
        if method.weights == "thompson":
            # Trained so that the share of correctly ranked pairs rises.
            examples.judges = make_examples(10)
    if method.loss == "modpo":
        examples.margins = 2.0 * (examples.chosen_lengths - examples.rejected_lengths) / 10
    return examples


def run(model: str | Path, output_dir: str | Path, kind: str, *, resume: bool = False, **training) -> dict[str, float]:
    """Ten pairs, three epochs of three steps (the last of each with two pairs), dropout in the adapter."""
    dropout = training.pop("dropout", 0.3)
    return train_policy(
        Policy(model=str(model), lora=Lora(r=4, alpha=8, dropout=dropout, target_modules="all-linear")),
        examples_of(kind),
        examples_of(kind, 5, seed=3),
        method_of(kind),
        TRAINING | training,
        output_dir,
        resume=resume,
    )
