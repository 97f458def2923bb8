"""Reference weights that change with each optimizer step: the step's columns, and the history of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrpo_pipeline.dataset.examples import Batch, PreferenceExamples
from mrpo_pipeline.files.atomic import whole_file
from mrpo_pipeline.policy.micro_batching import Indices
from mrpo_pipeline.policy.sampler import TrainingOrder
from mrpo_pipeline.targets.compute import temper_and_lift
from mrpo_pipeline.targets.online_weights import Thompson, sliding_window, step_inputs
from mrpo_pipeline.targets.settings import TargetSettings

Floats = npt.NDArray[np.float64]

HISTORY = "weights.parquet"


def step_columns(columns: Mapping[str, Any], method: TargetSettings, weights: Floats | None) -> dict[str, Tensor]:
    """The reference columns of B pairs, (B, R) float64, that replace the K raw ones.

    Args:
        columns: see ``PreferenceExamples.columns``.
        weights: α (K,) or (B, K), before temperature and floor; None for uniform ones, the state before the first step.
    """
    chosen, rejected = columns["reference_chosen"].numpy(), columns["reference_rejected"].numpy()
    counts = columns["chosen_units"], columns["rejected_units"]
    units = [None if column is None else column.numpy() for column in counts]
    alpha = np.full(chosen.shape[1], 1 / chosen.shape[1]) if weights is None else weights
    inputs = step_inputs(chosen, rejected, alpha, method, *units)
    return {
        name: torch.from_numpy(np.ascontiguousarray(getattr(inputs, name)))
        for name in ("reference_chosen", "reference_rejected", "weights")
    }


class StepWeights:
    """The reference weights of each step's pairs; the same on every process and for every packing.

    A sliding window follows from the training order, so it needs no state to resume. Checkpoints keep the counts of Thompson
    sampling.
    """

    def __init__(self, examples: PreferenceExamples, method: TargetSettings, order: TrainingOrder, seed: int) -> None:
        self.method, self.options = method, method.weights_options
        self.names = list(examples.step_references or ())
        self.thompson: Thompson | None = None
        if not method.is_windowed(self.names):
            self.thompson = Thompson(len(self.names), self.options.prior, self.options.every, seed)
        self._adaptive = examples.weights
        names = np.array([name.encode() for name in examples.pair_ids], dtype=np.bytes_)
        self._content: Indices = np.unique(names, return_inverse=True)[1]
        self._order = order
        self._rows: Floats = np.empty((0, len(self.names)))
        self._at: dict[int, int] = {}
        self._history: list[dict[str, Any]] = []
        self._since_log: list[Floats] = []

    def begin(self, step: int) -> None:
        """Set the weights of a step's pairs on all processes (steps are counted from 0)."""
        pairs = self._order.of(step)
        if self.thompson is None:
            window = self.options.window
            self._rows = sliding_window(self._adaptive, self._order.before(step), pairs, window, self._content)
        else:
            row = np.eye(len(self.names))[self.thompson.draw(step)]
            self._rows = np.tile(row, (len(pairs), 1))
        self._at = {int(pair): row for row, pair in enumerate(pairs)}

    def fill(self, batch: Batch) -> Batch:
        """A micro-batch of the running step with the reference columns of the loss."""
        rows = self._rows[[self._at[pair] for pair in batch["indices"]]]
        return batch | step_columns(batch, self.method, rows)

    def record(self, step: int) -> None:
        """Add the finished step to the history, after Thompson sampling has judged its reference."""
        weights = temper_and_lift(self._rows, self.options).mean(axis=0)
        self._since_log.append(weights)
        for at, name in enumerate(self.names):
            row: dict[str, Any] = {"step": step + 1, "reference": name, "weight": float(weights[at])}
            if self.thompson is not None:
                row |= {"successes": self.thompson.successes[at], "failures": self.thompson.failures[at]}
            self._history.append(row)

    def now(self, step: int) -> Floats:
        """(K,) weights for held-out pairs after ``step`` steps, before temperature and floor.

        The mean over the sliding window, or the means of Thompson sampling's Beta distributions.
        """
        if self.thompson is not None:
            return self.thompson.posterior_means()
        seen = self._order.before(step)[-self.options.window :]
        if not len(seen):
            return np.full(len(self.names), 1 / len(self.names))
        mean: Floats = self._adaptive[seen].mean(axis=0)
        return mean

    def logs(self) -> dict[str, float]:
        """``refs/NAME/weight``: the mean over the steps since the last call."""
        if not self._since_log:
            return {}
        means = np.mean(self._since_log, axis=0)
        self._since_log.clear()
        return self._named(means)

    def results(self) -> dict[str, float]:
        """``refs/NAME/weight``: the mean over all steps."""
        if not self._history:
            return {}
        weights = np.array([row["weight"] for row in self._history]).reshape(-1, len(self.names))
        return self._named(weights.mean(axis=0))

    def _named(self, weights: Floats) -> dict[str, float]:
        return {f"refs/{name}/weight": float(weight) for name, weight in zip(self.names, weights, strict=True)}

    def write_history(self, folder: Path) -> None:
        """Write ``weights.parquet``: ``step`` (from 1), ``reference``, ``weight`` (the mean over the step's pairs), and with
        Thompson sampling ``successes`` and ``failures`` after the step, the prior not counted."""
        import polars as pl

        schema: dict[str, Any] = {"step": pl.Int32, "reference": pl.String, "weight": pl.Float64}
        if self.thompson is not None:
            schema |= {"successes": pl.Int32, "failures": pl.Int32}
        with whole_file(folder / HISTORY) as temporary:
            pl.DataFrame(self._history, schema=schema).write_parquet(temporary)

    def read_history(self, folder: Path) -> None:
        """Resume from the history of a checkpoint."""
        import polars as pl

        self._history = pl.read_parquet(folder / HISTORY).to_dicts()
