"""Preference losses as pure functions of log-probs: Direct Preference Optimization (arXiv 2305.18290) and its kin.

Where a loss is also TRL's (``DPOTrainer`` 1.16: sigmoid, hinge, ipo), the numbers are the same.

Everything is computed in float64 and given back in the policy's precision. Sums reach thousands of nats, where float32
resolves 5e-4; the difference of policy and reference would carry that error, while B numbers cost nothing in float64.
For the same reason the caller should sum the policy's per-token log-probs in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mrpo_pipeline.losses import functional
from mrpo_pipeline.losses.settings import LossSettings, check_loss


class References(NamedTuple):
    """What B pairs are compared with: R columns, 1 for one π̃ or any one reference, K for Multi-DPO."""

    chosen: Tensor
    """(B, R), nats, sums; float64."""
    rejected: Tensor
    """(B, R), as above."""
    weights: Tensor
    """(B, R), rows summing to 1."""
    chosen_units: Tensor | None = None
    """(B,), what every log-ratio is divided by (``normalize: token`` or ``byte``); None for sums. They are the unit of the
    rewards too, and ``ipo`` takes its means by them."""
    rejected_units: Tensor | None = None
    """(B,), as above."""
    margins: Tensor | None = None
    """(B,), Σ_{j≥2} w_j·(r_j(y_w) − r_j(y_l)) of ``modpo``, which needs it."""


class PreferenceLoss(NamedTuple):
    """Per pair: the loss, with its gradient, and the implicit rewards, without."""

    losses: Tensor
    """(B,)"""
    chosen_rewards: Tensor
    """(B,), β·(ℓ_θ − log π̃) of the chosen side; with R references, Σ_k α_k of that."""
    rejected_rewards: Tensor
    """(B,)"""


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

    R = 1 is DPO against one reference, π̃ or any other; R = K is Multi-DPO (arXiv 2405.16388): every loss is then taken for
    each reference on its own and weighted, with one δ and one margin for all. L is, see ``functional``,

    - ``sigmoid``: −(1 − s)·log σ(z) − s·log σ(−z), label smoothing s;
    - ``hinge``: max(0, 1 − z);
    - ``ipo``: (z/β − 1/(2β))², z from means per policy token;
    - ``minor-dpo``: −log σ(β·[u(y_w) − max(0, u(y_l))]);
    - ``mpo``: the weighted sum of ``sigmoid`` and −log σ(β·u(y_w) − δ) − log σ(−(β·u(y_l) − δ));
    - ``modpo``: −log σ((z − margin)/w_1).

    Args:
        policy_chosen_logps, policy_rejected_logps: (B,), nats, sums over the completion.
        references: what they are compared with.
        settings: the loss, β and its options; the SFT term of ``mpo`` is :func:`sft_loss`.
        chosen_lengths, rejected_lengths: (B,), the policy's tokens in each completion. ``ipo`` needs them, unless there
            are units; the others do not look at them.
        reward_mean: δ of ``mpo``: the mean of the rewards, of both sides of the pairs seen before.

    Returns:
        losses and rewards, (B,) each, in the policy's dtype, float32 at least.

    Raises:
        UserError: for a loss that cannot have label smoothing.
        ValueError: for shapes that do not fit, ``ipo`` without lengths, or ``modpo`` without margins.
    """
    check_loss(settings)
    beta, weights = settings.beta, references.weights
    pairs = policy_chosen_logps.shape
    if not (
        len(pairs) == 1
        and policy_rejected_logps.shape == pairs
        and references.chosen.dim() == 2
        and references.chosen.shape[:1] == pairs
        and references.chosen.shape == references.rejected.shape == weights.shape
    ):
        raise ValueError(
            f"policy log-probs {tuple(pairs)} and {tuple(policy_rejected_logps.shape)}, references "
            f"{tuple(references.chosen.shape)} and {tuple(references.rejected.shape)}, weights {tuple(weights.shape)}: "
            "expected (B,) twice and (B, R) three times"
        )
    log_ratio_chosen = policy_chosen_logps.double()[:, None] - references.chosen.double()  # (B, R)
    log_ratio_rejected = policy_rejected_logps.double()[:, None] - references.rejected.double()
    if references.chosen_units is not None or references.rejected_units is not None:
        log_ratio_chosen = log_ratio_chosen / _counts(references.chosen_units, pairs)
        log_ratio_rejected = log_ratio_rejected / _counts(references.rejected_units, pairs)

    z = beta * (log_ratio_chosen - log_ratio_rejected)
    if settings.loss == "ipo":
        mean_chosen, mean_rejected = log_ratio_chosen, log_ratio_rejected
        if references.chosen_units is None:
            mean_chosen = mean_chosen / _counts(chosen_lengths, pairs)
            mean_rejected = mean_rejected / _counts(rejected_lengths, pairs)
        losses = functional.ipo(mean_chosen, mean_rejected, beta)
    elif settings.loss == "hinge":
        losses = functional.hinge(z)
    elif settings.loss == "minor-dpo":
        losses = functional.minor_dpo(log_ratio_chosen, log_ratio_rejected, beta)
    elif settings.loss == "mpo":
        losses = functional.mpo(
            log_ratio_chosen, log_ratio_rejected, beta, reward_mean, settings.mpo.preference, settings.mpo.quality
        )
    elif settings.loss == "modpo":
        losses = functional.modpo(
            z, _counts(references.margins, pairs, "margins of the other objectives"), settings.first_weight
        )
    else:
        losses = functional.sigmoid(z, settings.label_smoothing)

    alpha = weights.double()
    dtype = torch.promote_types(policy_chosen_logps.dtype, torch.float32)
    return PreferenceLoss(
        losses=(alpha * losses).sum(dim=1).to(dtype),
        chosen_rewards=(beta * (alpha * log_ratio_chosen).sum(dim=1)).detach().to(dtype),
        rejected_rewards=(beta * (alpha * log_ratio_rejected).sum(dim=1)).detach().to(dtype),
    )


def sft_loss(policy_chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """Negative log-likelihood per policy token of the chosen completion, end-of-turn token included.

    Args:
        policy_chosen_logps: (B,), nats, sums over the completion.
        chosen_lengths: (B,), the policy's tokens in it.

    Returns:
        (B,), nats per token; to be added to the losses times ``sft_weight``.
    """
    return -policy_chosen_logps / chosen_lengths.to(policy_chosen_logps.dtype)


def _counts(counts: Tensor | None, pairs: torch.Size, what: str = "counts to divide log-ratios by") -> Tensor:
    if counts is None or counts.shape != pairs:
        found = "none" if counts is None else str(tuple(counts.shape))
        raise ValueError(f"{what}: {found}, expected ({pairs[0]},)")
    return counts.double()[:, None]
