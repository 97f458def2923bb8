"""``preference_loss`` with settings and references as plain arguments, for hand-worked sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrpo_pipeline.losses import preference
from mrpo_pipeline.losses.preference import PreferenceLoss, References
from mrpo_pipeline.losses.settings import LossSettings

COLUMNS = ("chosen_units", "rejected_units", "margins", "floored_margins")
GIVEN = ("chosen_lengths", "rejected_lengths", "reward_mean")


def preference_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    weights: Tensor,
    *,
    first_weight: float = 1.0,
    **options: Any,
) -> PreferenceLoss:
    columns = {name: options.pop(name) for name in COLUMNS if name in options}
    given = {name: options.pop(name) for name in GIVEN if name in options}
    modpo = {} if first_weight == 1 else {"other": {"weight": 1 - first_weight}}
    settings = LossSettings.model_validate({"modpo": modpo, **options})
    references = References(reference_chosen, reference_rejected, weights, **columns)
    return preference.preference_loss(policy_chosen_logps, policy_rejected_logps, references, settings, **given)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one_pair(policy: Any, reference: Any, *, weights: Any = (1.0,), **options: Any) -> PreferenceLoss:
    """The loss of one pair; ``policy`` is (chosen, rejected), ``reference`` the same, or a list of such for R > 1."""
    references = torch.tensor(reference, dtype=torch.float64).reshape(-1, 2)
    for name in ("margins", "floored_margins"):
        if name in options:
            options[name] = doubles(options[name])
    options.setdefault("beta", 0.1)
    return preference_loss(
        doubles(policy[0]), doubles(policy[1]), references[:, 0][None], references[:, 1][None], doubles(*weights)[None], **options
    )  # fmt: skip
