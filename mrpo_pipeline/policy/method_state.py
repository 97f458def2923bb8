"""State that training carries from step to step beside the adapter: step-scoped weights, and BCO's running reward mean.

Both change only between optimizer steps, by sums over the whole step. So they do not depend on how a step is split into
micro-batches and processes. Most methods have neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrpo_pipeline.dataset.examples import Batch, PreferenceExamples
from mrpo_pipeline.files.atomic import write_whole_json
from mrpo_pipeline.policy.sampler import StepSampler, TrainingOrder
from mrpo_pipeline.policy.step_weights import HISTORY, StepWeights
from mrpo_pipeline.recipe import Method

Floats = npt.NDArray[np.float64]

STATE_FILE = "carried.json"


@dataclass(frozen=True)
class MethodSnapshot:
    """The state at one step, as held-out pairs are evaluated with it."""

    weights: Floats | None = None
    """(K,) step-scoped weights, before temperature and floor; None for uniform ones."""
    reward_mean: float = 0.0
    """δ of ``bco``."""


AT_START = MethodSnapshot()


def read_snapshot(folder: str | Path) -> MethodSnapshot:
    """The state in the output folder of a finished run or in a checkpoint; ``AT_START`` if its method has no state."""
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        return AT_START
    document = json.loads(path.read_text(encoding="utf-8"))
    weights = document["weights"]
    row = None if weights is None else np.array(list(weights.values()), dtype=np.float64)
    return MethodSnapshot(row, float(document["reward_mean"]))


class RewardMean:
    """δ of ``bco``: the mean reward of both sides of all pairs of earlier steps; 0 in the first step.

    BCO (arXiv 2404.04656) takes a running mean. Here the running step is not part of it, so δ does not depend on packing.
    """

    def __init__(self) -> None:
        self.total = 0.0
        """Of the finished steps, over all processes."""
        self.count = 0.0
        # Sum and number of the running step's rewards on this process.
        self._step: Tensor | None = None

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0

    def add(self, chosen: Tensor, rejected: Tensor, pair_weights: Tensor) -> None:
        """Add the rewards of a micro-batch, (B,) each; pairs of weight 0 do not count."""
        sums = torch.stack([((chosen + rejected) * pair_weights).sum(), 2 * pair_weights.sum().to(chosen.dtype)])
        self._step = sums if self._step is None else self._step + sums

    def end_step(self, accelerator: Any) -> None:
        """Add the finished step's sums over all processes."""
        if self._step is not None:
            total, count = accelerator.reduce(self._step, "sum").tolist()
            self.total, self.count, self._step = self.total + total, self.count + count, None


class MethodState:
    """Step-scoped weights and the reward mean, as far as the method has them.

    Args:
        examples: the training pairs. sampler: determines their order. seed: of the draws.
    """

    def __init__(self, examples: PreferenceExamples, method: Method, sampler: StepSampler, seed: int) -> None:
        self.step = 0
        self._best: MethodSnapshot | None = None
        self.weights: StepWeights | None = None
        if examples.step_references is not None:
            self.weights = StepWeights(examples, method, TrainingOrder(sampler), seed)
        self.rewards = RewardMean() if method.has_reward_mean else None

    def __bool__(self) -> bool:
        """Whether the method has any state."""
        return self.weights is not None or self.rewards is not None

    def begin(self, step: int) -> None:
        """Start a step (counted from 0)."""
        self.step = step
        if self.weights is not None:
            self.weights.begin(step)

    def fill(self, batch: Batch) -> Batch:
        """A micro-batch with the reference columns of the running step."""
        return batch if self.weights is None else self.weights.fill(batch)

    @property
    def reward_mean(self) -> float:
        """δ of ``bco``; 0 for other losses."""
        return 0.0 if self.rewards is None else self.rewards.value

    def add_rewards(self, chosen: Tensor, rejected: Tensor, pair_weights: Tensor) -> None:
        """Add the rewards of a micro-batch of the running step, (B,) each."""
        if self.rewards is not None:
            self.rewards.add(chosen, rejected, pair_weights)

    def end(self, step: int, accelerator: Any) -> None:
        """End a step (counted from 0) on every process, after Thompson sampling has judged its reference."""
        self.step = step + 1
        if self.rewards is not None:
            self.rewards.end_step(accelerator)
        if self.weights is not None:
            self.weights.record(step)

    def snapshot(self) -> MethodSnapshot:
        """The current state, or that of the best checkpoint after :meth:`use_checkpoint`."""
        return self._best or MethodSnapshot(
            None if self.weights is None else self.weights.now(self.step), self.reward_mean
        )

    def use_checkpoint(self, checkpoint: Path) -> None:
        """Evaluate with the state of a checkpoint from now on, because the adapter is the checkpoint's."""
        self._best = read_snapshot(checkpoint)

    def logs(self) -> dict[str, float]:
        """Metrics for the training log: weights since the last log, and the current δ."""
        logs = {} if self.weights is None else self.weights.logs()
        return logs | self._delta()

    def results(self) -> dict[str, float]:
        """Metrics for the run's results: weights over all steps, and the final δ."""
        results = {} if self.weights is None else self.weights.results()
        return results | self._delta()

    def _delta(self) -> dict[str, float]:
        return {} if self.rewards is None else {"rewards/running_mean": self.reward_mean}

    def write(self, folder: Path) -> None:
        """Write what :meth:`restore` and :func:`read_snapshot` read: ``carried.json``, and the weights' history.

        Removes these files if an earlier run of another method left them.
        """
        for name, belongs in ((STATE_FILE, bool(self)), (HISTORY, self.weights is not None)):
            if not belongs:
                (folder / name).unlink(missing_ok=True)
        if not self:
            return
        snapshot = self.snapshot()
        names = [] if self.weights is None else self.weights.names
        thompson = None if self.weights is None else self.weights.thompson
        document: dict[str, Any] = {
            "version": 1,
            "step": self.step,
            "weights": None
            if snapshot.weights is None
            else dict(zip(names, map(float, snapshot.weights), strict=True)),
            "reward_mean": snapshot.reward_mean,
            "rewards": None if self.rewards is None else {"total": self.rewards.total, "count": self.rewards.count},
            "thompson": None if thompson is None else thompson.state(),
        }
        # JSON writes the repr of a float, which reads back as the same float.
        write_whole_json(folder / STATE_FILE, document)
        if self.weights is not None:
            self.weights.write_history(folder)

    def restore(self, checkpoint: Path) -> None:
        """Resume from a checkpoint of this run."""
        if not self:
            return
        document: Mapping[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        self.step = int(document["step"])
        if self.rewards is not None:
            self.rewards.total, self.rewards.count = document["rewards"]["total"], document["rewards"]["count"]
        if self.weights is not None:
            self.weights.read_history(checkpoint)
            if self.weights.thompson is not None:
                self.weights.thompson.restore(document["thompson"])
