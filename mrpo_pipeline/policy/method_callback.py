"""Between two steps: the reference that was drawn is judged, rewards are added up, and both are kept."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from mrpo_pipeline.policy.metrics import TIE, wins
from mrpo_pipeline.targets.online_weights import Thompson


class StepsEnd(TrainerCallback):  # type: ignore[misc]
    """Ends each step of what the trainer carries (``carried.Carried``), before a log or a checkpoint is written.

    Thompson sampling judges by ``accuracy/policy`` as sums, on the pairs of the weights split that were picked for it: the
    share for which the policy's log-prob is higher on the chosen side, a tie one half. It is measured once before the first
    step, and then after each stretch of steps; the policy is in eval mode, dropout off.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        weights = trainer.carried.weights
        self.thompson: Thompson | None = None if weights is None else weights.thompson

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.thompson is not None and self.thompson.accuracy is None:
            self.thompson.accuracy = self._accuracy()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step - 1
        if self.thompson is not None and self.thompson.is_due(step):
            self.thompson.judge(self._accuracy())
        self.trainer.carried.end(step, self.trainer.accelerator)

    def _accuracy(self) -> float:
        chosen, rejected = self.trainer.policy_sums(self.trainer.train_dataset.judges, tell=False)
        with torch.no_grad():
            ranked = wins(chosen - rejected, TIE * (chosen.abs() + rejected.abs()))
        return float(ranked.mean())
