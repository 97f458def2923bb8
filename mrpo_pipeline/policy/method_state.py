"""What training carries from step to step beside the adapter: step-scoped weights, and MPO's running mean of the rewards.

Both are the same however a step is packed into micro-batches and processes: they change between steps alone, by sums over
the whole step. A method that has neither carries nothing, and pays nothing.
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

CARRIED = "carried.json"


@dataclass(frozen=True)
class CarriedFigures:
    """What held-out pairs are measured with: where training has come to."""

    weights: Floats | None = None
    """(K,) of step-scoped weights, before temperature and floor; None for uniform ones."""
    reward_mean: float = 0.0
    """δ of ``mpo``."""


AT_START = CarriedFigures()


def read_figures(folder: str | Path) -> CarriedFigures:
    """What a finished run left in its output folder, or a checkpoint; the start's where its method carries nothing."""
    path = Path(folder) / CARRIED
    if not path.is_file():
        return AT_START
    document = json.loads(path.read_text(encoding="utf-8"))
    weights = document["weights"]
    row = None if weights is None else np.array(list(weights.values()), dtype=np.float64)
    return CarriedFigures(row, float(document["reward_mean"]))


class RewardMean:
    """δ of ``mpo``: the mean of the rewards of both sides of all pairs of the steps before; 0 in the first step.

    BCO (arXiv 2404.04656) takes a running mean; that the running step has no part in it makes it the same for every packing.
    """

    def __init__(self) -> None:
        self.total = 0.0
        """Of the steps that are done, over all processes."""
        self.count = 0.0
        # Of the running step, on this process: the sum of its rewards and their number.
        self._step: Tensor | None = None

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0

    def take(self, chosen: Tensor, rejected: Tensor, pair_weights: Tensor) -> None:
        """The rewards of a micro-batch, (B,) each; those of pairs of weight 0 do not count."""
        sums = torch.stack([((chosen + rejected) * pair_weights).sum(), 2 * pair_weights.sum().to(chosen.dtype)])
        self._step = sums if self._step is None else self._step + sums

    def close(self, accelerator: Any) -> None:
        """The step is done, on every process."""
        if self._step is not None:
            total, count = accelerator.reduce(self._step, "sum").tolist()
            self.total, self.count, self._step = self.total + total, self.count + count, None


class Carried:
    """The two of them, where the method has them.

    Args:
        examples: what is trained on. sampler: gives the order of it. seed: of the draws.
    """

    def __init__(self, examples: PreferenceExamples, method: Method, sampler: StepSampler, seed: int) -> None:
        self.step = 0
        self._adopted: CarriedFigures | None = None
        self.weights: StepWeights | None = None
        if examples.step_references is not None:
            self.weights = StepWeights(examples, method, TrainingOrder(sampler), seed)
        self.rewards = RewardMean() if method.loss == "mpo" else None

    def __bool__(self) -> bool:
        """Whether there is anything to carry."""
        return self.weights is not None or self.rewards is not None

    def begin(self, step: int) -> None:
        """Before a step (counted from 0)."""
        self.step = step
        if self.weights is not None:
            self.weights.begin(step)

    def fill(self, batch: Batch) -> Batch:
        """A micro-batch with the references that the running step trains against."""
        return batch if self.weights is None else self.weights.fill(batch)

    @property
    def reward_mean(self) -> float:
        """δ of ``mpo``; 0 for another loss."""
        return 0.0 if self.rewards is None else self.rewards.value

    def take_rewards(self, chosen: Tensor, rejected: Tensor, pair_weights: Tensor) -> None:
        """The rewards of a micro-batch of the running step, (B,) each."""
        if self.rewards is not None:
            self.rewards.take(chosen, rejected, pair_weights)

    def end(self, step: int, accelerator: Any) -> None:
        """After a step (counted from 0), when its reference has been judged; on every process."""
        self.step = step + 1
        if self.rewards is not None:
            self.rewards.close(accelerator)
        if self.weights is not None:
            self.weights.record(step)

    def figures(self) -> CarriedFigures:
        """For held-out pairs, now; of the checkpoint that :meth:`adopt` was given, where it was."""
        return self._adopted or CarriedFigures(
            None if self.weights is None else self.weights.now(self.step), self.reward_mean
        )

    def adopt(self, checkpoint: Path) -> None:
        """The adapter is that of a checkpoint now, the best one: held-out pairs are measured with what it had come to."""
        self._adopted = read_figures(checkpoint)

    def logs(self) -> dict[str, float]:
        """For the training log: weights since the last one, and δ as it stands."""
        logs = {} if self.weights is None else self.weights.logs()
        return logs | self._delta()

    def results(self) -> dict[str, float]:
        """For the run's results: weights over all steps, and δ at the end."""
        results = {} if self.weights is None else self.weights.results()
        return results | self._delta()

    def _delta(self) -> dict[str, float]:
        return {} if self.rewards is None else {"rewards/running_mean": self.reward_mean}

    def write(self, folder: Path) -> None:
        """Leave what :meth:`restore` and :func:`read_figures` read: ``carried.json``, and the weights' history.

        What an earlier run of another method left there goes.
        """
        for name, belongs in ((CARRIED, bool(self)), (HISTORY, self.weights is not None)):
            if not belongs:
                (folder / name).unlink(missing_ok=True)
        if not self:
            return
        figures = self.figures()
        names = [] if self.weights is None else self.weights.names
        document: dict[str, Any] = {
            "version": 1,
            "step": self.step,
            "weights": None if figures.weights is None else dict(zip(names, map(float, figures.weights), strict=True)),
            "reward_mean": figures.reward_mean,
            "rewards": None if self.rewards is None else {"total": self.rewards.total, "count": self.rewards.count},
            "thompson": None
            if self.weights is None or self.weights.thompson is None
            else self.weights.thompson.state(),
        }
        # repr of a float, which JSON writes, gives the same float back.
        write_whole_json(folder / CARRIED, document)
        if self.weights is not None:
            self.weights.write_history(folder)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of this run."""
        if not self:
            return
        document: Mapping[str, Any] = json.loads((checkpoint / CARRIED).read_text(encoding="utf-8"))
        self.step = int(document["step"])
        if self.rewards is not None:
            self.rewards.total, self.rewards.count = document["rewards"]["total"], document["rewards"]["count"]
        if self.weights is not None:
            self.weights.read_history(checkpoint)
            if self.weights.thompson is not None:
                self.weights.thompson.restore(document["thompson"])
