"""Figures of preference training, pair by pair: loss, rewards, accuracies. The names are TRL's where TRL has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.losses.preference import References, preference_loss, sft_loss
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.policy.method_state import AT_START, CarriedFigures
from mrpo_pipeline.policy.step_weights import step_columns
from mrpo_pipeline.recipe import Method

# Two figures that differ by less than this share of the sums they come from are equal: float32 resolves no more.
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

# What an evaluation logs, with `eval_` before each.
EVALUATED = ("loss", *METRICS, *(f"{name}_ties" for name in METRICS if name in SHARES), "num_tokens")


class PairLosses(NamedTuple):
    """(B,) each; the rewards carry no gradient."""

    losses: Tensor
    """The SFT term included."""
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def pair_losses(
    chosen: Tensor,
    rejected: Tensor,
    lengths: Tensor,
    columns: Mapping[str, Any],
    settings: LossSettings,
    reward_mean: float = 0.0,
) -> PairLosses:
    """Losses and implicit rewards of B pairs.

    Args:
        chosen, rejected: (B,), nats, the policy's sums.
        lengths: (2B,), the policy's tokens of the chosen completions, then of the rejected ones.
        columns: the pairs' cached numbers, see ``PreferenceExamples.columns``; with step-scoped weights, those of the step.
        reward_mean: δ of ``mpo``.
    """
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    references = References(
        columns["reference_chosen"],
        columns["reference_rejected"],
        columns["weights"],
        columns["chosen_units"],
        columns["rejected_units"],
        columns["margins"],
    )
    losses, chosen_rewards, rejected_rewards = preference_loss(
        chosen,
        rejected,
        references,
        settings,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        reward_mean=reward_mean,
    )
    if settings.sft:
        losses = losses + settings.sft * sft_loss(chosen, chosen_lengths)
    return PairLosses(losses, chosen_rewards, rejected_rewards)


def wins(difference: Tensor, tie: Tensor) -> Tensor:
    """(B,): 1 where the chosen side is ahead, 0 where it is behind, one half where the two are equal within ``tie``."""
    return torch.where(difference.abs() <= tie, 0.5, (difference > 0).to(difference.dtype))


@torch.no_grad()
def pair_metrics(
    chosen: Tensor,
    rejected: Tensor,
    result: PairLosses,
    lengths: Tensor,
    columns: Mapping[str, Any],
    settings: LossSettings,
) -> Tensor:
    """(len(METRICS), B): every figure of every pair, in the order of ``METRICS``.

    Arguments as in :func:`pair_losses`, and ``result`` what it gave.
    """
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    chosen_units, rejected_units = columns["chosen_units"], columns["rejected_units"]
    size = chosen.abs(), rejected.abs()
    sums = size[0] + size[1]
    reward_size = sums if chosen_units is None else size[0] / chosen_units + size[1] / rejected_units
    rewards = result.chosen_rewards, result.rejected_rewards
    margins = rewards[0] - rewards[1]
    per_token = chosen / chosen_lengths, rejected / rejected_lengths
    log_ratios = chosen - columns["anchor_chosen"], rejected - columns["anchor_rejected"]
    return torch.stack(
        [
            *rewards,
            margins,
            wins(margins, TIE * settings.beta * reward_size),
            chosen,
            rejected,
            wins(chosen - rejected, TIE * sums),
            wins(per_token[0] - per_token[1], TIE * (per_token[0].abs() + per_token[1].abs())),
            wins(log_ratios[0] - log_ratios[1], TIE * sums),
        ]
    )


@torch.no_grad()
def evaluation_metrics(
    chosen: Tensor,
    rejected: Tensor,
    examples: PreferenceExamples,
    method: Method,
    carried: CarriedFigures = AT_START,
) -> dict[str, float]:
    """Averages over all pairs: ``loss``, ``METRICS``, and for each share ``…_ties``, the share of pairs that tie.

    Args:
        chosen, rejected: (N,), nats, the policy's sums of every pair, in the order of ``examples``.
        carried: with step-scoped weights and ``mpo``, the weights and the δ that training has come to.
    """
    if not len(examples):
        return {}
    device, dtype = chosen.device, chosen.dtype
    raw = examples.columns()
    if examples.step_references is not None:
        raw |= step_columns(raw, method, carried.weights)
    columns = {name: None if column is None else column.to(device, dtype) for name, column in raw.items()}
    lengths = torch.cat([torch.from_numpy(examples.chosen_counts), torch.from_numpy(examples.rejected_counts)])
    lengths = lengths.to(device)
    result = pair_losses(chosen, rejected, lengths, columns, method, carried.reward_mean)
    values = pair_metrics(chosen, rejected, result, lengths, columns, method)
    averages = dict(zip(METRICS, values.mean(dim=1).tolist(), strict=True))
    ties = (values == 0.5).to(dtype).mean(dim=1).tolist()
    return {
        "loss": float(result.losses.mean()),
        **averages,
        **{f"{name}_ties": share for name, share in zip(METRICS, ties, strict=True) if name in SHARES},
    }
