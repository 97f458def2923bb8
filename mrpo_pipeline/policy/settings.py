"""Settings of stage two, as plain dataclasses: the recipe maps its keys to these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The preference loss; see ``mrpo_pipeline.losses``."""

    beta: float = 0.1
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    """γ: the weight of the negative log-likelihood per token of the chosen completion."""
    preference_weight: float = 0.8
    """``mpo``: of the sigmoid loss."""
    quality_weight: float = 0.2
    """``mpo``: of the quality loss (BCO)."""
    first_weight: float = 1.0
    """``modpo``: w_1, the preference's own weight among the objectives."""
