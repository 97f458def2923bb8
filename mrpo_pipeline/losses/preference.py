"""The preference loss of pairs from their log-probs: a weighted sum of DPO (arXiv 2305.18290) and related losses.

Computes in float64 and returns the policy's dtype, float32 at least. Log-probs of completions reach thousands of nats, where
float32 resolves only 5e-4, and the difference of policy and reference would keep that error. For the same reason the caller
should sum the policy's per-token log-probs in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mrpo_pipeline.losses.functional import LOSSES, PairLogps
from mrpo_pipeline.losses.settings import LossSettings, check_loss


class References(NamedTuple):
    """The references of B pairs: R = 1 column for π̃ or a single reference, R = K columns for Multi-DPO."""

    chosen: Tensor
    """(B, R), nats: log-probs of the completion; float64."""
    rejected: Tensor
    """(B, R), as above."""
    weights: Tensor
    """(B, R), rows summing to 1."""
    chosen_units: Tensor | None = None
    """(B,), the divisor of every log-ratio (``normalize: token`` or ``byte``), and so the unit of the rewards and of the means in
    ``ipo``; None for sums."""
    rejected_units: Tensor | None = None
    """(B,), as above."""
    margins: Tensor | None = None
    """(B,), Σ_{j≥2} w_j·(r_j(y_w) − r_j(y_l)); required by ``modpo``."""
    floored_margins: Tensor | None = None
    """(B,), the aggregate of max{0, Δ_k} in the unit of ``normalize``; required by ``hypo-each``."""


class PreferenceLoss(NamedTuple):
    """The loss of each pair with gradient, and the implicit rewards without."""

    losses: Tensor
    """(B,)"""
    chosen_rewards: Tensor
    """(B,), β·(ℓ_θ − log π̃) of the chosen side; the mean weighted by α over several references."""
    rejected_rewards: Tensor
    """(B,)"""
    terms: dict[str, Tensor]
    """(B,) by name: each loss of the sum, unweighted and without gradient."""


def preference_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    references: References,
    settings: LossSettings,
    *,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    reward_mean: float = 0.0,
) -> PreferenceLoss:
    """Loss of each pair, Σ_k α_k·L(u_k), with u_k = ℓ_θ − ℓ_k on both sides and z_k = β·[u_k(y_w) − u_k(y_l)].

    L is the weighted sum of the losses in ``settings`` (see ``functional.LOSSES``). R = 1 is DPO against π̃ or a single
    reference. R = K is Multi-DPO (arXiv 2405.16388): every loss is computed per reference and weighted by α, with the same δ of
    ``bco`` and margins of ``modpo`` for all.

    Args:
        policy_chosen_logps, policy_rejected_logps: (B,), nats, sums over the completion.
        references: their log-probs and weights.
        settings: the losses, their weights, β and their options.
        chosen_lengths, rejected_lengths: (B,), policy tokens of each completion, for losses of means per token.
        reward_mean: δ of ``bco`` (see ``PairLogps``).

    Returns:
        losses and rewards, (B,) each, in the policy's dtype, float32 at least.

    Raises:
        UserError: for loss settings that contradict each other.
        ValueError: for shapes that do not match, or a missing input that a loss requires.
    """
    check_loss(settings)
    weights = references.weights
    pairs = policy_chosen_logps.shape
    if not (
        policy_rejected_logps.shape == pairs
        and references.chosen.dim() == 2
        and references.chosen.shape[:1] == pairs
        and references.chosen.shape == references.rejected.shape == weights.shape
    ):
        raise ValueError(
            f"policy log-probs {tuple(pairs)} and {tuple(policy_rejected_logps.shape)}, references "
            f"{tuple(references.chosen.shape)} and {tuple(references.rejected.shape)}, weights {tuple(weights.shape)}: "
            "expected (B,) twice and (B, R) three times"
        )
    units = tokens = None
    if references.chosen_units is not None or references.rejected_units is not None:
        units = _column(references.chosen_units, pairs), _column(references.rejected_units, pairs)
    needed = {need for name in settings.losses for need in LOSSES[name].needs}
    if "tokens" in needed and (units is None or "sft" in settings.losses):
        tokens = _column(chosen_lengths, pairs), _column(rejected_lengths, pairs)
    logps = PairLogps(
        policy_chosen_logps.double()[:, None],
        policy_rejected_logps.double()[:, None],
        references.chosen.double(),
        references.rejected.double(),
        settings,
        units,
        tokens,
        _column(references.margins, pairs, "margins of the other objectives") if "margins" in needed else None,
        _column(references.floored_margins, pairs, "floored margins") if "floored_margins" in needed else None,
        reward_mean,
    )
    alpha = weights.double()
    dtype = torch.promote_types(policy_chosen_logps.dtype, torch.float32)
    terms = {name: (alpha * LOSSES[name].function(logps)).sum(dim=1) for name in settings.losses}
    total = torch.stack([weight * terms[name] for name, weight in settings.losses.items()]).sum(dim=0)
    chosen_rewards, rejected_rewards = ((alpha * rewards).sum(dim=1).detach().to(dtype) for rewards in logps.rewards)
    return PreferenceLoss(
        total.to(dtype),
        chosen_rewards,
        rejected_rewards,
        {name: losses.detach().to(dtype) for name, losses in terms.items()},
    )


def _column(counts: Tensor | None, pairs: torch.Size, what: str = "counts to divide log-ratios by") -> Tensor:
    if counts is None or counts.shape != pairs:
        found = "none" if counts is None else str(tuple(counts.shape))
        raise ValueError(f"{what}: {found}, expected ({pairs[0]},)")
    return counts.double()[:, None]
