"""The keys of a recipe's ``method`` that determine the preference loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses.functional import LOSSES, LossName
from mrpo_pipeline.settings_base import Settings

# Sums of losses with a name. MPO (arXiv 2411.10442): preference, quality and generation loss with their usual weights.
SHORTHANDS: dict[str, dict[str, float]] = {"mpo": {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}}

# Spellings in TRL and papers that differ by more than case and underscores.
_SPELLINGS = {
    **{f"{name}-pair": name for name in ("exo", "nca", "bco")},
    "sppo-hard": "sppo",
    "minordpo": "minor-dpo",
}


def _canonical(name: Any) -> Any:
    if not isinstance(name, str):
        return name
    plain = name.lower().replace("_", "-")
    return _SPELLINGS.get(plain, plain)


def _canonical_loss(value: Any) -> Any:
    """The value with each loss under this project's name."""
    if not isinstance(value, dict):
        return _canonical(value)
    names = [_canonical(name) for name in value]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"each loss once; {name} is there {names.count(name)} times")
    return dict(zip(names, value.values(), strict=True))


def _some_weight(value: Any) -> Any:
    if isinstance(value, dict) and not any(value.values()):
        raise ValueError("a loss at least with a weight above 0")
    return value


class Objective(Settings):
    """An objective of the loss ``modpo`` beside the preference (arXiv 2310.03708).

    Its reward is read from two columns of the pairs file (``chosen``, ``rejected``), or is the implicit reward
    β·(log π_tuned − log π_base) of two references (``tuned``, ``base``).
    """

    weight: float = Field(gt=0, lt=1)
    """Its weight; the preference has 1 minus the sum of the objectives' weights."""
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
    loss: Annotated[
        LossName | Literal["mpo"] | dict[LossName, Annotated[float, Field(ge=0)]],
        BeforeValidator(_canonical_loss),
        AfterValidator(_some_weight),
    ] = "sigmoid"
    """The preference loss, or losses by name with their weights (`{sigmoid: 0.8, bco: 0.2, sft: 1.0}`, which `mpo` is short for); see
    `docs/concepts.md`."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of wrong labels, for `sigmoid`, `robust`, `exo` (where it must be above 0), `aot` and `aot-unpaired`."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen side's negative log-likelihood per token: the loss `sft`, added to the others."""
    discopop_tau: float = Field(0.05, gt=0)
    """τ of the loss `discopop`."""
    simpo_gamma: float = Field(1.0, ge=0)
    """γ of the loss `simpo`: the target margin, in β times nats per token."""
    anchored_delta: float = 0.0
    """δ of the loss `anchored`."""
    bco_shift: Literal["running-mean", "zero"] = "running-mean"
    """δ of the loss `bco`: the mean reward of all pairs of earlier steps (as in the paper), or 0 (as in TRL)."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """The divergence between policy and π̃ (arXiv 2309.16240); those other than `reverse_kl` need a loss of the two sides' difference."""
    f_alpha_divergence_coef: float = 0.5
    """α of `alpha_divergence`."""
    modpo: dict[str, Objective] = {}
    """Objectives of the loss `modpo`, by name."""

    @property
    def losses(self) -> dict[str, float]:
        """The losses of the sum and their weights, including the SFT term of ``sft_weight``."""
        losses: dict[str, float]
        if isinstance(self.loss, str):
            losses = SHORTHANDS.get(self.loss, {self.loss: 1.0})
        else:
            losses = {name: weight for name, weight in self.loss.items() if weight}
        return {**losses, "sft": self.sft_weight} if self.sft_weight else losses

    @property
    def first_weight(self) -> float:
        """w_1 of ``modpo``: the preference's weight, 1 minus those of the objectives."""
        return 1 - sum(objective.weight for objective in self.modpo.values())

    @property
    def has_reward_mean(self) -> bool:
        """Whether the loss depends on the mean reward of earlier steps."""
        return "bco" in self.losses and self.bco_shift == "running-mean"

    def settings_read(self) -> set[str]:
        """The keys beside β that the losses in use read."""
        found = {key for name in self.losses for key in LOSSES[name].settings}
        if any(LOSSES[name].of_difference and LOSSES[name].reads_references for name in self.losses):
            found.add("f_divergence_type")
        if self.f_divergence_type == "alpha_divergence":
            found.add("f_alpha_divergence_coef")
        return found

    def loss_in_use(self) -> dict[str, Any]:
        """The keys that determine this loss, given the pairs' log-probs; keys of other losses have no effect."""
        found = {key: getattr(self, key) for key in sorted(self.settings_read())}
        found |= {"beta": self.beta, "loss": self.losses}
        return found | ({"modpo": self.first_weight} if "modpo" in self.losses else {})


def check_loss(settings: LossSettings) -> None:
    """Refuse loss settings that contradict each other; cheap, so call it early.

    Raises:
        UserError: naming the setting.
    """
    losses, smoothing = settings.losses, settings.label_smoothing
    if settings.sft_weight and "sft" in _without_sft_weight(settings):
        raise UserError(
            f"The setting method.sft_weight is {settings.sft_weight:g} with method.loss {_named(settings)}, which has an SFT term of "
            "its own: expected one of them. Set method.sft_weight to 0, and give the term's weight in method.loss "
            "(`loss: {sigmoid: 0.8, bco: 0.2, sft: 1.0}`)."
        )
    if smoothing and "label_smoothing" not in settings.settings_read():
        smoothed = ", ".join(name for name, loss in LOSSES.items() if "label_smoothing" in loss.settings)
        raise UserError(
            f"The setting method.label_smoothing is {smoothing} with method.loss {_named(settings)}: label smoothing is defined for "
            f"{smoothed}. Set it to 0, or take one of these."
        )
    if "exo" in losses and not smoothing:
        raise UserError(
            "The setting method.label_smoothing is 0 with method.loss exo, which is infinite there: expected a number above 0, 0.001 in "
            "its paper. Set it."
        )
    unfit = [name for name in losses if not LOSSES[name].of_difference]
    if settings.f_divergence_type != "reverse_kl" and unfit:
        fit = ", ".join(name for name, loss in LOSSES.items() if loss.of_difference)
        raise UserError(
            f"The setting method.f_divergence_type is {settings.f_divergence_type} with the loss {unfit[0]}: such a divergence is defined "
            f"only for losses of the difference of both sides, expected one of {fit}. Set it to reverse_kl, or change the loss."
        )


def _without_sft_weight(settings: LossSettings) -> dict[str, float]:
    return settings.model_copy(update={"sft_weight": 0.0}).losses


def _named(settings: LossSettings) -> str:
    return settings.loss if isinstance(settings.loss, str) else " + ".join(settings.loss)
