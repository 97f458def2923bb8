"""A policy's log-probs on held-out pairs, and their metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.dataset.completion_numbering import of_ranked
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.pairs.counts import require_balance
from mrpo_pipeline.policy.method_state import AT_START, MethodSnapshot
from mrpo_pipeline.recipe import Method
from mrpo_pipeline.terminal import track

Floats = npt.NDArray[np.float64]


@dataclass
class PolicyFigures:
    """A policy on N pairs: its sums, (N,) nats, and its metrics, means over pairs."""

    chosen: Floats
    rejected: Floats
    metrics: dict[str, float]


def device_of_choice() -> str:
    """``cuda`` if available, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(model: Any) -> str:
    """The dtype of the base weights, by the model's first parameter: ``float32``, ``bfloat16``, …"""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def evaluate_policy(
    model: Any,
    examples: PreferenceExamples,
    method: Method,
    snapshot: MethodSnapshot = AT_START,
    *,
    batch_size: int = 8,
    what: str = "evaluating",
) -> PolicyFigures:
    """The policy's sums of every pair, and the metrics of ``mrpo_pipeline.policy.metrics``.

    A prompt runs once for all its completions of a batch if the model then gives the same log-probs as in separate rows; a completion
    of ranked answers runs once for all pairs of a batch that hold it.

    Args:
        model: a causal language model, adapters and all; put into eval mode.
        snapshot: the method's state at the end of training (``method_state.read_snapshot``). Loss and rewards depend on it if
            weights change from step to step; the loss also if it includes ``bco`` (as ``mpo`` does).
        batch_size: pairs at a time.

    Raises:
        RunError: if the policy's log-prob of a pair is not finite; names the pairs.
    """
    import torch

    from mrpo_pipeline.models.causality import require_causal
    from mrpo_pipeline.models.completion_forward import to_device
    from mrpo_pipeline.models.head import Head
    from mrpo_pipeline.policy.forward import PolicyForward
    from mrpo_pipeline.policy.metrics import evaluation_metrics
    from mrpo_pipeline.policy.nonfinite import require_finite_sums
    from mrpo_pipeline.policy.sampler import EvalDataset, EvalSampler, PairLoader
    from mrpo_pipeline.policy.share_prompts import share_prompts

    model.eval()
    parameter = next(model.parameters())
    dtype = dtype_of(model)
    require_causal(model, "of the policy", dtype)
    forward = PolicyForward(Head.of(model))
    sums = torch.full((2, len(examples)), torch.nan, dtype=torch.float64)
    seen = 0
    distinct = of_ranked(examples)
    loader = PairLoader(
        EvalDataset(examples, distinct), EvalSampler(examples.lengths, size=batch_size, distinct=distinct)
    )
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
    metrics = evaluation_metrics(sums[0], sums[1], examples, method, snapshot)
    return PolicyFigures(sums[0].numpy(), sums[1].numpy(), metrics)
