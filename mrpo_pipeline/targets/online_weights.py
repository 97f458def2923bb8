"""Weights that change from step to step: the sliding window and Thompson sampling, and a step's targets made with them.

Both follow "what was seen so far", so both say what that is. Everything here is arithmetic on numbers given; which pairs a
step has, and how the policy did after it, the caller knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.targets import aggregate
from mrpo_pipeline.targets.aggregate import Floats
from mrpo_pipeline.targets.compute import LossInputs, finished
from mrpo_pipeline.targets.settings import TargetSettings

Indices = npt.NDArray[np.int64]

# Told apart from the generators of the batches, which are seeded alike.
_DRAWS = 0x7407


def step_inputs(
    reference_chosen: Floats,
    reference_rejected: Floats,
    weights: Floats,
    method: TargetSettings,
    chosen_units: Floats | None = None,
    rejected_units: Floats | None = None,
) -> LossInputs:
    """What the loss takes for B pairs whose weights are known only now; the trust region was applied before.

    Args:
        reference_chosen, reference_rejected: (B, K), nats, sums, as ``Targets.loss_inputs`` gives them.
        weights: α (B, K), or (K,) for all pairs alike, rows summing to 1, before temperature and floor.
        chosen_units, rejected_units: (B,), with ``normalize: token`` or ``byte``.
    """
    alpha = finished(np.broadcast_to(np.atleast_2d(weights), reference_chosen.shape), method.weights_options)
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
    """For each pair of a step, the adaptive weights averaged over the last ``window`` *other* pairs seen.

    After the sliding-window weights of arXiv 2512.10040, where the pair itself is in its window. Seen are the pairs of
    earlier steps alone, in the order of training: those of the same step are seen together, so none of them is in another's
    window. Where fewer were seen, over as many as there are; before any was, uniform.

    Args:
        adaptive: (N, K), each pair's own adaptive weights.
        seen: (T,), the pairs of all earlier steps, the last one last; a pair stands there once for each time.
        pairs: (B,), those of the step.
        window: how many others.
        content: (N,), equal for pairs of equal content: what stands in the file twice is the same pair.

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
    """Thompson sampling of a reference (arXiv 2512.10040): each is an arm with a Beta distribution of its success.

    A reference is drawn for ``every`` steps: k = argmax of a draw from Beta(prior + successes_k, prior + failures_k). It then
    has a success where the policy ranks more of the held-out pairs rightly than before those steps, else a failure; so a tie
    is a failure. Draws depend on seed, step and counts alone: no generator has a state to keep.
    """

    references: int
    prior: float = 1.0
    every: int = 1
    seed: int = 0
    successes: list[int] = field(default_factory=list)
    """(K,), the prior not counted."""
    failures: list[int] = field(default_factory=list)
    accuracy: float | None = None
    """On the held-out pairs when it was last measured; None before that."""
    arm: int | None = None
    """The reference of these steps; None before the first."""

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
        """Whether the reference is to be judged when this step (counted from 0) is done."""
        return (step + 1) % self.every == 0

    def judge(self, accuracy: float) -> None:
        """Count a success or a failure of the reference that was drawn."""
        if self.arm is None or self.accuracy is None:
            raise ValueError("no reference was drawn, or nothing measured before: expected both")
        counts = self.successes if accuracy > self.accuracy else self.failures
        counts[self.arm] += 1
        self.accuracy = accuracy

    def posterior_means(self) -> Floats:
        """(K,): a/(a + b) of each reference, divided by their sum: what pairs that are not trained on are weighted by."""
        a, b = self._beta()
        means = a / (a + b)
        result: Floats = means / means.sum()
        return result

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "successes": list(self.successes),
            "failures": list(self.failures),
            "accuracy": self.accuracy,
            "arm": self.arm,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.successes, self.failures = [list(map(int, state[name])) for name in ("successes", "failures")]
        self.accuracy, self.arm = state["accuracy"], state["arm"]

    def _beta(self) -> tuple[Floats, Floats]:
        return _plus(self.prior, self.successes), _plus(self.prior, self.failures)


def _plus(prior: float, counts: Sequence[int]) -> Floats:
    return prior + np.asarray(counts, dtype=np.float64)
