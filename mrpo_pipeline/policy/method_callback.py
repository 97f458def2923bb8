"""Trainer callback that updates the method's state between optimizer steps."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from mrpo_pipeline.policy.metrics import TIE, wins
from mrpo_pipeline.targets.online_weights import Thompson


class MethodCallback(TrainerCallback):  # type: ignore[misc]
    """Updates ``method_state.MethodState`` after each step, before a log or a checkpoint is written.

    Thompson sampling's outcome is ``accuracy/policy`` by sums on selected pairs of the weights split: the share with a higher
    policy log-prob on the chosen side, a tie counting one half. It is measured before the first step and then every
    ``weights_options.every`` steps, in eval mode.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        weights = trainer.method_state.weights
        self.thompson: Thompson | None = None if weights is None else weights.thompson

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.thompson is not None and self.thompson.accuracy is None:
            self.thompson.accuracy = self._accuracy()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step - 1
        if self.thompson is not None and self.thompson.is_due(step):
            self.thompson.judge(self._accuracy())
        self.trainer.method_state.end(step, self.trainer.accelerator)

    def _accuracy(self) -> float:
        chosen, rejected = self.trainer.policy_sums(self.trainer.train_dataset.judges, report=False)
        with torch.no_grad():
            ranked = wins(chosen - rejected, TIE * (chosen.abs() + rejected.abs()))
        return float(ranked.mean())
