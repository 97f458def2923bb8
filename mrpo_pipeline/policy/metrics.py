"""Metrics of preference training for each pair: loss, rewards, accuracies. Names follow TRL where TRL has the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.losses.preference import PreferenceLoss, References, preference_loss
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.policy.anchor_drift import DRIFT, anchor_drift
from mrpo_pipeline.policy.method_state import AT_START, MethodSnapshot
from mrpo_pipeline.policy.step_weights import step_columns
from mrpo_pipeline.recipe import Method

# Two values are a tie if they differ by less than this share of the sums they come from: float32 resolves no more.
TIE = 1e-6

METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "accuracy/policy",
    "accuracy/policy_per_token",
    "accuracy/anchor",
)
SHARES = ("rewards/accuracies", "accuracy/policy", "accuracy/policy_per_token", "accuracy/anchor")

# Metrics that need the anchor's sums.
ANCHOR_METRICS = ("accuracy/anchor", "accuracy/anchor_ties", *DRIFT)

# The metrics of an evaluation, logged with the prefix `eval_`.
EVAL_METRICS = ("loss", *METRICS, *(f"{name}_ties" for name in METRICS if name in SHARES), *DRIFT, "num_tokens")


def metric_names(settings: LossSettings, *, anchored: bool = True) -> tuple[str, ...]:
    """``METRICS``, and for a sum of losses an unweighted ``loss/NAME`` of each.

    Args:
        anchored: whether the pairs hold the anchor's sums; without them, ``ANCHOR_METRICS`` are left out.
    """
    own = METRICS if anchored else tuple(name for name in METRICS if name not in ANCHOR_METRICS)
    return (*own, *(f"loss/{name}" for name in settings.losses if len(settings.losses) > 1))


def pair_losses(
    chosen: Tensor,
    rejected: Tensor,
    lengths: Tensor,
    columns: Mapping[str, Any],
    settings: LossSettings,
    reward_mean: float = 0.0,
) -> PreferenceLoss:
    """Losses and implicit rewards of B pairs.

    Args:
        chosen, rejected: (B,), nats, the policy's sums.
        lengths: (2B,), policy tokens of the chosen completions, then of the rejected ones.
        columns: see ``PreferenceExamples.columns``; with step-scoped weights, those of the step.
        reward_mean: δ of ``bco``.
    """
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    references = References(
        columns["reference_chosen"],
        columns["reference_rejected"],
        columns["weights"],
        columns["chosen_units"],
        columns["rejected_units"],
        columns["margins"],
        columns["floored_margins"],
    )
    return preference_loss(
        chosen,
        rejected,
        references,
        settings,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        reward_mean=reward_mean,
    )


def wins(difference: Tensor, tie: Tensor) -> Tensor:
    """(B,): 1 if the chosen side is ahead, 0 if it is behind, one half if the two are equal within ``tie``."""
    return torch.where(difference.abs() <= tie, 0.5, (difference > 0).to(difference.dtype))


@torch.no_grad()
def pair_metrics(
    chosen: Tensor,
    rejected: Tensor,
    result: PreferenceLoss,
    lengths: Tensor,
    columns: Mapping[str, Any],
    settings: LossSettings,
) -> Tensor:
    """(M, B): the metrics of each pair, in the order of ``metric_names``.

    Arguments as in :func:`pair_losses`, which returns ``result``.
    """
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    chosen_units, rejected_units = columns["chosen_units"], columns["rejected_units"]
    size = chosen.abs(), rejected.abs()
    sums = size[0] + size[1]
    reward_size = sums if chosen_units is None else size[0] / chosen_units + size[1] / rejected_units
    rewards = result.chosen_rewards, result.rejected_rewards
    margins = rewards[0] - rewards[1]
    per_token = chosen / chosen_lengths, rejected / rejected_lengths
    moved = []
    if columns["anchor_chosen"] is not None:
        log_ratios = chosen - columns["anchor_chosen"], rejected - columns["anchor_rejected"]
        moved.append(wins(log_ratios[0] - log_ratios[1], TIE * sums))
    return torch.stack(
        [
            *rewards,
            margins,
            wins(margins, TIE * settings.beta * reward_size),
            chosen,
            rejected,
            wins(chosen - rejected, TIE * sums),
            wins(per_token[0] - per_token[1], TIE * (per_token[0].abs() + per_token[1].abs())),
            *moved,
            *(result.terms.values() if len(result.terms) > 1 else ()),
        ]
    )


class MetricSums:
    """Metrics summed over training pairs on the device, and read once per log.

    Args:
        names: ``metric_names``. dtype: of the sums.
    """

    def __init__(self, names: Sequence[str], *, dtype: torch.dtype, device: torch.device) -> None:
        self._names = names
        self._sums = torch.zeros(1 + len(names), dtype=dtype, device=device)  # the number of pairs first

    def add(self, values: Tensor, pair_weights: Tensor, pairs: int) -> None:
        """Add (M, B) metrics of a micro-batch that holds ``pairs`` pairs of weight 1."""
        self._sums[0] += pairs
        self._sums[1:] += values @ pair_weights.to(values.dtype)

    def averages(self, accelerator: Any) -> dict[str, float]:
        """Averages over the pairs of all processes since the last call; empty without pairs."""
        count, *sums = accelerator.reduce(self._sums, "sum").tolist()
        self._sums.zero_()
        return {name: value / count for name, value in zip(self._names, sums, strict=True)} if count else {}


@torch.no_grad()
def evaluation_metrics(
    chosen: Tensor,
    rejected: Tensor,
    examples: PreferenceExamples,
    method: Method,
    snapshot: MethodSnapshot = AT_START,
) -> dict[str, float]:
    """Averages over all pairs: ``loss``, ``metric_names``, for each share ``…_ties``, the share of pairs that tie, and ``DRIFT``.

    Args:
        chosen, rejected: (N,), nats, the policy's sums of every pair, in the order of ``examples``.
        snapshot: the weights of step-scoped methods, and δ of ``bco``.
    """
    if not len(examples):
        return {}
    device, dtype = chosen.device, chosen.dtype
    raw = examples.columns()
    if examples.step_references is not None:
        raw |= step_columns(raw, method, snapshot.weights)
    columns = {name: None if column is None else column.to(device, dtype) for name, column in raw.items()}
    lengths = torch.cat([torch.from_numpy(examples.chosen_counts), torch.from_numpy(examples.rejected_counts)])
    lengths = lengths.to(device)
    result = pair_losses(chosen, rejected, lengths, columns, method, snapshot.reward_mean)
    values = pair_metrics(chosen, rejected, result, lengths, columns, method)
    names = metric_names(method, anchored=examples.anchor_chosen is not None)
    averages = dict(zip(names, values.mean(dim=1).tolist(), strict=True))
    ties = (values == 0.5).to(dtype).mean(dim=1).tolist()
    return {
        "loss": float(result.losses.mean()),
        **averages,
        **{f"{name}_ties": share for name, share in zip(names, ties, strict=True) if name in SHARES},
        **anchor_drift(chosen.double().cpu().numpy(), rejected.double().cpu().numpy(), examples),
    }
