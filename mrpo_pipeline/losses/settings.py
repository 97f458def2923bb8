"""The part of a recipe's ``method`` that decides the preference loss."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.settings import Settings


class Mpo(Settings):
    """How much the three terms of the loss ``mpo`` count (arXiv 2411.10442)."""

    preference: float = Field(0.8, ge=0)
    """Of the sigmoid loss."""
    quality: float = Field(0.2, ge=0)
    """Of the BCO loss of each side alone."""
    sft: float = Field(1.0, ge=0)
    """Of the chosen side's negative log-likelihood per token."""


class Objective(Settings):
    """One objective of the loss ``modpo`` beside the preference (arXiv 2310.03708), and its share of all of them.

    Its reward stands in two columns of the pairs file, ``chosen`` and ``rejected``; or it is the implicit one of two
    references, β·(log π_tuned − log π_base), named by ``tuned`` and ``base``.
    """

    weight: float = Field(gt=0, lt=1)
    """Its share; the preference has what the objectives leave of 1."""
    chosen: str | None = None
    """Column of the pairs file with the chosen side's reward."""
    rejected: str | None = None
    """Column with the rejected side's reward."""
    tuned: str | None = None
    """Reference that was tuned for the objective."""
    base: str | None = None
    """Reference that it was tuned from."""
    beta: float = Field(0.1, gt=0)
    """β of the implicit reward."""


class LossSettings(Settings):
    """The preference loss."""

    beta: float = Field(0.1, gt=0)
    """The KL strength, in the unit of `normalize`: 0.1 is a β for sums."""
    loss: Literal["sigmoid", "hinge", "ipo", "minor-dpo", "mpo", "modpo"] = "sigmoid"
    """The preference loss; see `docs/concepts.md`."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs whose label is taken to be wrong; of the sigmoid loss alone."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen side's negative log-likelihood per token."""
    mpo: Mpo = Mpo()
    """How much the terms of the loss `mpo` count."""
    modpo: dict[str, Objective] = {}
    """Objectives of the loss `modpo`, by name."""

    @property
    def sft(self) -> float:
        """γ of the SFT term: the third term of MPO is the same, with a weight of its own."""
        return self.mpo.sft if self.loss == "mpo" else self.sft_weight

    @property
    def first_weight(self) -> float:
        """w_1 of ``modpo``, the preference's own share: what the other objectives leave of 1."""
        return 1 - sum(objective.weight for objective in self.modpo.values())

    def loss_in_use(self) -> dict[str, Any]:
        """The keys that decide this loss of pairs whose numbers are known; those of other losses change nothing."""
        found: dict[str, Any] = {"beta": self.beta, "loss": self.loss, "sft_weight": self.sft}
        if self.loss == "sigmoid":
            found["label_smoothing"] = self.label_smoothing
        elif self.loss == "mpo":
            found |= {"mpo.preference": self.mpo.preference, "mpo.quality": self.mpo.quality}
        elif self.loss == "modpo":
            found["modpo"] = self.first_weight
        return found


LOSSES: tuple[str, ...] = get_args(LossSettings.model_fields["loss"].annotation)


def check_loss(settings: LossSettings) -> None:
    """Refuse label smoothing where it has no meaning; costs nothing, so call it early.

    Raises:
        UserError: naming the setting.
    """
    if settings.label_smoothing and settings.loss != "sigmoid":
        raise UserError(
            f"The setting method.label_smoothing is {settings.label_smoothing} with method.loss {settings.loss!r}: label "
            "smoothing is defined for the sigmoid loss alone. Set it to 0, or set method.loss to sigmoid."
        )
