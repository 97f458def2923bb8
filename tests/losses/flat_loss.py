"""``preference_loss`` with its settings and references as options, as sums by hand are written."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mrpo_pipeline.losses import preference
from mrpo_pipeline.losses.preference import PreferenceLoss, References
from mrpo_pipeline.losses.settings import LossSettings


def preference_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    weights: Tensor,
    *,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    preference_weight: float = 0.8,
    quality_weight: float = 0.2,
    first_weight: float = 1.0,
    chosen_units: Tensor | None = None,
    rejected_units: Tensor | None = None,
    margins: Tensor | None = None,
    **rest: Any,
) -> PreferenceLoss:
    settings = LossSettings.model_validate(
        {
            "beta": beta,
            "loss": loss,
            "label_smoothing": label_smoothing,
            "mpo": {"preference": preference_weight, "quality": quality_weight},
            "modpo": {} if first_weight == 1 else {"other": {"weight": 1 - first_weight}},
        }
    )
    references = References(reference_chosen, reference_rejected, weights, chosen_units, rejected_units, margins)
    return preference.preference_loss(policy_chosen_logps, policy_rejected_logps, references, settings, **rest)
