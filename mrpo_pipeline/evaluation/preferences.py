"""A policy's log-probs on held-out pairs, and the figures made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.policy.examples import PreferenceExamples
from mrpo_pipeline.policy.settings import LossSettings
from mrpo_pipeline.progress import track

Floats = npt.NDArray[np.float64]


@dataclass
class PolicyFigures:
    """One policy on N pairs: its sums, (N,) nats, and the averages over pairs."""

    chosen: Floats
    rejected: Floats
    metrics: dict[str, float]


def device_of_choice() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def evaluate_policy(
    model: Any, examples: PreferenceExamples, settings: LossSettings, *, batch_size: int = 8, what: str = "evaluating"
) -> PolicyFigures:
    """Sums of every pair by a policy, and the metrics of ``mrpo_pipeline.policy.metrics``.

    Args:
        model: a causal language model, adapters and all; put into eval mode.
        batch_size: pairs at a time.
    """
    import torch

    from mrpo_pipeline.head import Head
    from mrpo_pipeline.policy.batches import AllOnce, PairLoader
    from mrpo_pipeline.policy.forward import PolicyForward, to_device
    from mrpo_pipeline.policy.layout import two_rows
    from mrpo_pipeline.policy.metrics import evaluation_metrics

    model.eval()
    device = next(model.parameters()).device
    forward = PolicyForward(Head.of(model))
    sums = torch.zeros(2, len(examples), dtype=torch.float64)
    loader = PairLoader(examples, AllOnce(examples.lengths, size=batch_size))
    with torch.inference_mode(), track(what, len(examples), "pairs") as progress:
        for batch in loader:
            result = forward(**to_device(two_rows(batch), device))
            sums[:, batch["indices"]] = result.view(2, -1).double().cpu()
            progress.advance(batch["pairs"])
    metrics = evaluation_metrics(sums[0], sums[1], examples, settings)
    return PolicyFigures(sums[0].numpy(), sums[1].numpy(), metrics)
