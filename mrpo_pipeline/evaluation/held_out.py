"""A policy's log-probs on held-out pairs, and the figures made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.pairs.counting import require_balance
from mrpo_pipeline.policy.method_state import AT_START, CarriedFigures
from mrpo_pipeline.recipe import Method
from mrpo_pipeline.terminal import track

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


def dtype_of(model: Any) -> str:
    """Of the base weights, the first of its parameters: ``float32``, ``bfloat16``, …"""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def evaluate_policy(
    model: Any,
    examples: PreferenceExamples,
    method: Method,
    carried: CarriedFigures = AT_START,
    *,
    batch_size: int = 8,
    what: str = "evaluating",
) -> PolicyFigures:
    """Sums of every pair by a policy, and the metrics of ``mrpo_pipeline.policy.metrics``.

    A prompt runs once for both of its completions where the model then gives the log-probs that it gives in two rows.

    Args:
        model: a causal language model, adapters and all; put into eval mode.
        carried: where the training of this policy came to (``carried.read_figures``): loss and rewards depend on it where
            weights change from step to step, and with ``mpo``.
        batch_size: pairs at a time.

    Raises:
        RunError: where the policy's log-prob of a pair is not finite; names the pairs.
    """
    import torch

    from mrpo_pipeline.models.causality import require_causal
    from mrpo_pipeline.models.head import Head
    from mrpo_pipeline.policy.forward import PolicyForward, to_device
    from mrpo_pipeline.policy.metrics import evaluation_metrics
    from mrpo_pipeline.policy.nonfinite import require_finite_sums
    from mrpo_pipeline.policy.prompt_sharing_check import share_prompts
    from mrpo_pipeline.policy.sampler import AllOnce, PairLoader

    model.eval()
    parameter = next(model.parameters())
    dtype = dtype_of(model)
    require_causal(model, "of the policy", dtype)
    forward = PolicyForward(Head.of(model))
    sums = torch.full((2, len(examples)), torch.nan, dtype=torch.float64)
    seen = 0
    loader = PairLoader(examples, AllOnce(examples.lengths, size=batch_size))
    own, model.forward = model.forward, forward
    try:
        with torch.inference_mode(), track(what, len(examples), "pairs") as progress:
            share_prompts(
                model, forward, [examples], range(min(4, len(examples))), dtype=dtype, device=parameter.device
            )
            for batch in loader:
                result = model(**to_device(forward.inputs(batch), parameter.device))
                sums[:, batch["indices"]] = result.view(2, -1).double().cpu()
                seen += batch["pairs"]
                progress.advance(batch["pairs"])
    finally:
        model.forward = own
    require_balance("evaluation", len(examples), seen)
    require_finite_sums(sums[0], sums[1], examples.pair_ids)
    metrics = evaluation_metrics(sums[0], sums[1], examples, method, carried)
    return PolicyFigures(sums[0].numpy(), sums[1].numpy(), metrics)
