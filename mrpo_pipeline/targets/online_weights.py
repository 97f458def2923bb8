"""Weights that change from step to step (sliding window, Thompson sampling), and the loss inputs of a step with them.

Pure arithmetic: the caller passes the pairs of a step, and the policy's held-out accuracy after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.targets import aggregate
from mrpo_pipeline.targets.aggregate import Floats
from mrpo_pipeline.targets.compute import LossInputs, temper_and_lift
from mrpo_pipeline.targets.settings import TargetSettings

Indices = npt.NDArray[np.int64]

# Keeps these draws independent of the batch generators, which have the same seed.
_DRAWS = 0x7407


def step_inputs(
    reference_chosen: Floats,
    reference_rejected: Floats,
    weights: Floats,
    method: TargetSettings,
    chosen_units: Floats | None = None,
    rejected_units: Floats | None = None,
) -> LossInputs:
    """The loss inputs of B pairs with the weights of a step.

    Args:
        reference_chosen, reference_rejected: (B, K), nats, after the trust region, from ``Targets.loss_inputs``.
        weights: α (B, K), or (K,) for all pairs, rows summing to 1, before temperature and floor.
        chosen_units, rejected_units: (B,), with ``normalize: token`` or ``byte``.
    """
    alpha = temper_and_lift(np.broadcast_to(np.atleast_2d(weights), reference_chosen.shape), method.weights_options)
    if method.name == "multi-dpo":
        return LossInputs(reference_chosen, reference_rejected, alpha, chosen_units, rejected_units)
    combine = aggregate.AGGREGATES[method.aggregate]
    targets = []
    for logps, units in ((reference_chosen, chosen_units), (reference_rejected, rejected_units)):
        if units is None:
            targets.append(combine(logps, alpha)[:, None])
        else:
            targets.append((combine(logps / units[:, None], alpha) * units)[:, None])
    return LossInputs(targets[0], targets[1], np.ones((len(alpha), 1)), chosen_units, rejected_units)


def sliding_window(adaptive: Floats, seen: Indices, pairs: Indices, window: int, content: Indices) -> Floats:
    """For each pair of a step, the mean of the adaptive weights of the last ``window`` *other* pairs.

    After the sliding-window weights of arXiv 2512.10040, where a pair is in its own window. The window holds pairs of earlier
    steps only, in training order. At the start of training it is shorter; in the first step the weights are uniform.

    Args:
        adaptive: (N, K), each pair's own adaptive weights.
        seen: (T,), indices of the pairs of all earlier steps, in order; a pair is repeated for every time it was trained on.
        pairs: (B,), indices of the step's pairs.
        window: maximum number of other pairs.
        content: (N,), equal for pairs with equal content, so that duplicates in the file count as the same pair.

    Returns:
        (B, K), rows summing to 1.
    """
    recent = seen[-window:]
    common = adaptive[recent].mean(axis=0) if len(recent) else np.full(adaptive.shape[1], 1 / adaptive.shape[1])
    rows = np.tile(common, (len(pairs), 1))
    for at in np.flatnonzero(np.isin(content[pairs], content[recent])):
        others = _last_others(seen, content, content[pairs[at]], window)
        rows[at] = adaptive[others].mean(axis=0) if len(others) else 1 / adaptive.shape[1]
    return rows


def _last_others(seen: Indices, content: Indices, own: np.int64, window: int) -> Indices:
    back = 2 * window
    while True:
        tail = seen[-back:]
        others: Indices = tail[content[tail] != own]
        if len(others) >= window or back >= len(seen):
            return others[-window:]
        back *= 2


@dataclass
class Thompson:
    """Thompson sampling of a reference (arXiv 2512.10040): each is an arm with a Beta posterior of its success rate.

    Every ``every`` steps a reference is drawn: k = argmax_k of a sample from Beta(prior + successes_k, prior + failures_k). It
    has a success if the policy's held-out accuracy rose over these steps, else a failure; a tie is a failure. Draws depend only
    on seed, step and counts, so that no generator state has to be saved.
    """

    references: int
    prior: float = 1.0
    every: int = 1
    seed: int = 0
    successes: list[int] = field(default_factory=list)
    """(K,), without the prior."""
    failures: list[int] = field(default_factory=list)
    accuracy: float | None = None
    """The last measured held-out accuracy; None before the first measurement."""
    arm: int | None = None
    """The reference that was drawn last; None before the first draw."""

    def __post_init__(self) -> None:
        self.successes = self.successes or [0] * self.references
        self.failures = self.failures or [0] * self.references

    def draw(self, step: int) -> int:
        """The reference of a step (counted from 0)."""
        if self.arm is None or step % self.every == 0:
            random = np.random.default_rng([_DRAWS, self.seed, step])
            a, b = self._beta()
            self.arm = int(random.beta(a, b).argmax())
        return self.arm

    def is_due(self, step: int) -> bool:
        """Whether the reference is judged after this step (counted from 0)."""
        return (step + 1) % self.every == 0

    def judge(self, accuracy: float) -> None:
        """Count a success or a failure of the drawn reference.

        Raises:
            ValueError: before the first draw or the first measurement.
        """
        if self.arm is None or self.accuracy is None:
            raise ValueError("no reference was drawn, or no accuracy measured before: expected both")
        counts = self.successes if accuracy > self.accuracy else self.failures
        counts[self.arm] += 1
        self.accuracy = accuracy

    def posterior_means(self) -> Floats:
        """(K,): the posterior means a/(a + b), normalized to sum to 1: the weights of held-out pairs."""
        a, b = self._beta()
        means = a / (a + b)
        result: Floats = means / means.sum()
        return result

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {
            "successes": list(self.successes),
            "failures": list(self.failures),
            "accuracy": self.accuracy,
            "arm": self.arm,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a result of :meth:`state`."""
        self.successes, self.failures = [list(map(int, state[name])) for name in ("successes", "failures")]
        self.accuracy, self.arm = state["accuracy"], state["arm"]

    def _beta(self) -> tuple[Floats, Floats]:
        return _plus(self.prior, self.successes), _plus(self.prior, self.failures)


def _plus(prior: float, counts: Sequence[int]) -> Floats:
    return prior + np.asarray(counts, dtype=np.float64)
