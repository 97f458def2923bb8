"""Every preference loss as a function of a batch's log-probs, by name: ``LOSSES``.

u_w = ℓ_θ(y_w) − log π̃(y_w) and u_l are the log-ratios of both sides, z = β·(u_w − u_l), Δ_θ = ℓ_θ(y_w) − ℓ_θ(y_l) and
Δ_π̃ = log π̃(y_w) − log π̃(y_l). Where TRL has the loss, values equal those of the installed TRL (``DPOTrainer``; ``simpo``:
``CPOTrainer``) with π̃ as the reference.

Recipes are checked against these names, so torch is imported only when a loss is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from mrpo_pipeline.losses.settings import LossSettings

LossName = Literal[
    "sigmoid", "hinge", "ipo", "sigmoid-norm", "robust", "exo", "nca", "bco", "sppo", "aot", "aot-unpaired", "apo-zero", "apo-down",
    "discopop", "sft", "minor-dpo", "hypo", "hypo-each", "anchored", "modpo", "simpo",
]  # fmt: skip


@dataclass(frozen=True)
class PairLogps:
    """The inputs of a loss for B pairs and R references; tensors are float64."""

    chosen: Tensor
    """(B, 1), nats: the policy's log-prob of the completion."""
    rejected: Tensor
    reference_chosen: Tensor
    """(B, R), nats: log π̃ of the completion (R = 1), or each reference's log-prob (Multi-DPO)."""
    reference_rejected: Tensor
    settings: LossSettings
    units: tuple[Tensor, Tensor] | None
    """(B, 1) per side: the divisor of log-probs (``normalize``); None for sums."""
    tokens: tuple[Tensor, Tensor] | None
    """(B, 1) per side: policy tokens."""
    margins: Tensor | None
    """(B, 1), Σ_{j≥2} w_j·(r_j(y_w) − r_j(y_l)) of ``modpo``."""
    floored_margins: Tensor | None
    """(B, 1), the aggregate of max{0, Δ_k} of ``hypo-each``, in the unit of ``normalize``."""
    reward_mean: float
    """δ of ``bco``: the mean reward over both sides of all pairs of earlier steps."""

    @property
    def beta(self) -> float:
        return self.settings.beta

    @cached_property
    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """(B, R), u_w and u_l."""
        return self._in_units(self.chosen - self.reference_chosen, self.rejected - self.reference_rejected)

    @cached_property
    def rewards(self) -> tuple[Tensor, Tensor]:
        """(B, R), β·u_w and β·u_l."""
        return self.beta * self.log_ratios[0], self.beta * self.log_ratios[1]

    @cached_property
    def scores(self) -> tuple[Tensor, Tensor]:
        """(B, R), f'(e^u) of both sides: u itself with the reverse KL (f-DPO, arXiv 2309.16240)."""
        return self._score(self.log_ratios[0]), self._score(self.log_ratios[1])

    @cached_property
    def z(self) -> Tensor:
        """(B, R), z = β·(u_w − u_l)."""
        return self.beta * (self.scores[0] - self.scores[1])

    @cached_property
    def policy_margin(self) -> Tensor:
        """(B, 1), Δ_θ."""
        chosen, rejected = self._in_units(self.chosen, self.rejected)
        return chosen - rejected

    @cached_property
    def reference_margin(self) -> Tensor:
        """(B, R), Δ_π̃."""
        chosen, rejected = self._in_units(self.reference_chosen, self.reference_rejected)
        return chosen - rejected

    def mean_margin(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """(B, 1) or (B, R) as the arguments: their difference, each divided by its side's units, or its tokens without units."""
        counts = self.units or self.tokens
        assert counts is not None
        return chosen / counts[0] - rejected / counts[1]

    def _in_units(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        return (chosen, rejected) if self.units is None else (chosen / self.units[0], rejected / self.units[1])

    def _score(self, u: Tensor) -> Tensor:
        kind, alpha = self.settings.f_divergence_type, self.settings.f_alpha_divergence_coef
        if kind == "forward_kl":
            return 1 - (-u).exp()
        if kind == "js_divergence":
            return math.log(2) + log_sigmoid(u)
        if kind == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
            # Clamped at e^80 as in TRL, so that float32 does not overflow.
            return (((alpha - 1) * u).clamp(max=80.0).exp() - 1) / (alpha - 1)
        return u


@dataclass(frozen=True)
class Loss:
    """A loss, and its inputs besides both sides' log-probs and β."""

    function: Callable[[PairLogps], Tensor]
    """Returns the loss of each pair, (B, R) or (B, 1)."""
    settings: tuple[str, ...]
    """Keys of ``method`` that it reads."""
    needs: tuple[Literal["tokens", "margins", "floored_margins"], ...]
    """Optional fields of ``PairLogps`` that it requires."""
    of_difference: bool
    """Whether it depends on the log-ratios only through their difference, as f-divergences other than the reverse KL require."""
    reads_references: bool
    sorts_batch: bool
    """Whether it sorts log-ratios over the batch: a pair's loss then depends on the other pairs."""


LOSSES: dict[str, Loss] = {}


def _loss(
    name: LossName,
    settings: tuple[str, ...] = (),
    needs: tuple[Literal["tokens", "margins", "floored_margins"], ...] = (),
    *,
    of_difference: bool = False,
    reads_references: bool = True,
    sorts_batch: bool = False,
) -> Callable[[Callable[[PairLogps], Tensor]], Callable[[PairLogps], Tensor]]:
    def add(function: Callable[[PairLogps], Tensor]) -> Callable[[PairLogps], Tensor]:
        LOSSES[name] = Loss(function, settings, needs, of_difference, reads_references, sorts_batch)
        return function

    return add


def log_sigmoid(x: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def _smoothed(z: Tensor, s: float) -> Tensor:
    """−(1 − s)·log σ(z) − s·log σ(−z)."""
    return -(1 - s) * log_sigmoid(z) - s * log_sigmoid(-z) if s else -log_sigmoid(z)


@_loss("sigmoid", ("label_smoothing",), of_difference=True)
def sigmoid(p: PairLogps) -> Tensor:
    """−(1 − s)·log σ(z) − s·log σ(−z): DPO (arXiv 2305.18290); with s > 0 conservative DPO, which TRL's ``sigmoid`` lacks."""
    return _smoothed(p.z, p.settings.label_smoothing)


@_loss("hinge", of_difference=True)
def hinge(p: PairLogps) -> Tensor:
    """max(0, 1 − z) (SLiC, arXiv 2305.10425)."""
    return (1 - p.z).relu()


@_loss("ipo", needs=("tokens",), of_difference=True)
def ipo(p: PairLogps) -> Tensor:
    """(z/β − 1/(2β))², with z/β from means per policy token as in TRL (arXiv 2310.12036, eq. 17)."""
    difference = p.scores[0] - p.scores[1] if p.units else p.mean_margin(*p.scores)
    return (difference - 1 / (2 * p.beta)) ** 2


@_loss("sigmoid-norm", needs=("tokens",), of_difference=True)
def sigmoid_norm(p: PairLogps) -> Tensor:
    """−log σ of β times the difference of the means per policy token; equals ``sigmoid`` with ``normalize: token``."""
    return -log_sigmoid(p.z if p.units else p.beta * p.mean_margin(*p.scores))


@_loss("robust", ("label_smoothing",), of_difference=True)
def robust(p: PairLogps) -> Tensor:
    """[−(1 − s)·log σ(z) + s·log σ(−z)] / (1 − 2s): unbiased if a share s of the labels is flipped (arXiv 2403.00409)."""
    s = p.settings.label_smoothing
    return (s * log_sigmoid(-p.z) - (1 - s) * log_sigmoid(p.z)) / (1 - 2 * s)


@_loss("exo", ("label_smoothing",), of_difference=True)
def exo(p: PairLogps) -> Tensor:
    """KL of (σ(z), σ(−z)) from (1 − s, s), s > 0 (arXiv 2402.00856, eq. 16)."""
    s = p.settings.label_smoothing
    chosen = p.z.sigmoid() * (log_sigmoid(p.z) - math.log1p(-s))
    return chosen + (-p.z).sigmoid() * (log_sigmoid(-p.z) - math.log(s))


@_loss("nca")
def nca(p: PairLogps) -> Tensor:
    """−log σ(βu_w) − ½·log σ(−βu_w) − ½·log σ(−βu_l) (arXiv 2402.05369)."""
    chosen, rejected = p.rewards
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


@_loss("bco", ("bco_shift",))
def bco(p: PairLogps) -> Tensor:
    """−log σ(βu_w − δ) − log σ(δ − βu_l): classifies each completion by itself (arXiv 2404.04656). In TRL, δ = 0."""
    chosen, rejected = p.rewards
    return -log_sigmoid(chosen - p.reward_mean) - log_sigmoid(p.reward_mean - rejected)


@_loss("sppo")
def sppo(p: PairLogps) -> Tensor:
    """(u_w − 1/(2β))² + (u_l + 1/(2β))² (arXiv 2405.00675, with win probabilities of 1 and 0)."""
    chosen, rejected = p.log_ratios
    return (chosen - 0.5 / p.beta) ** 2 + (rejected + 0.5 / p.beta) ** 2


@_loss("aot", ("label_smoothing",), sorts_batch=True)
def aot(p: PairLogps) -> Tensor:
    """``sigmoid`` of β·(Δ_θ − Δ_π̃), with Δ_θ and Δ_π̃ each sorted over the batch (arXiv 2406.05882)."""
    difference = p.policy_margin.sort(dim=0).values - p.reference_margin.sort(dim=0).values
    return _smoothed(p.beta * difference, p.settings.label_smoothing)


@_loss("aot-unpaired", ("label_smoothing",), sorts_batch=True)
def aot_unpaired(p: PairLogps) -> Tensor:
    """``sigmoid`` of β·(u_w − u_l), with u_w and u_l each sorted over the batch (arXiv 2406.05882)."""
    chosen, rejected = p.log_ratios
    difference = chosen.sort(dim=0).values - rejected.sort(dim=0).values
    return _smoothed(p.beta * difference, p.settings.label_smoothing)


@_loss("apo-zero")
def apo_zero(p: PairLogps) -> Tensor:
    """1 − σ(βu_w) + σ(βu_l): for chosen sides better than the policy's own completions (arXiv 2408.06266, eq. 7)."""
    chosen, rejected = p.rewards
    return 1 - chosen.sigmoid() + rejected.sigmoid()


@_loss("apo-down")
def apo_down(p: PairLogps) -> Tensor:
    """σ(βu_w) + 1 − σ(β·(u_w − u_l)): for chosen sides worse than the policy's own completions (arXiv 2408.06266, eq. 8)."""
    chosen, rejected = p.rewards
    return chosen.sigmoid() + 1 - (chosen - rejected).sigmoid()


@_loss("discopop", ("discopop_tau",), of_difference=True)
def discopop(p: PairLogps) -> Tensor:
    """(1 − σ(z/τ))·(−log σ(z)) + σ(z/τ)·e^(−z) (arXiv 2406.08414, eq. 5)."""
    modulation = p.z / p.settings.discopop_tau
    # In one exponential: for very negative z, σ underflows to 0 and e^(−z) overflows.
    return -log_sigmoid(p.z) * (-modulation).sigmoid() + (log_sigmoid(modulation) - p.z).exp()


@_loss("sft", needs=("tokens",), of_difference=True, reads_references=False)
def sft(p: PairLogps) -> Tensor:
    """−ℓ_θ(y_w) per policy token: the mean over each completion, where TRL takes the mean over the batch's tokens."""
    assert p.tokens is not None
    return -p.chosen / p.tokens[0]


@_loss("minor-dpo")
def minor_dpo(p: PairLogps) -> Tensor:
    """−log σ(β·[u_w − max(0, u_l)]) (MinorDPO, arXiv 2408.09834).

    The rejected completion is pushed down only while the policy finds it likelier than the reference does.
    """
    chosen, rejected = p.log_ratios
    return -log_sigmoid(p.beta * (chosen - rejected.relu()))


@_loss("hypo")
def hypo(p: PairLogps) -> Tensor:
    """−log σ(β·(Δ_θ − max{0, Δ_π̃})): a reference that ranks the pair wrongly has no effect (HyPO, arXiv 2602.11902).

    The margin of π̃ is floored; with Multi-DPO, each reference's margin in its own loss.
    """
    return -log_sigmoid(p.beta * (p.policy_margin - p.reference_margin.relu()))


@_loss("hypo-each", needs=("floored_margins",))
def hypo_each(p: PairLogps) -> Tensor:
    """``hypo`` with each Δ_k floored before margins are aggregated, so that a wrong reference does not cancel a right one."""
    assert p.floored_margins is not None
    return -log_sigmoid(p.beta * (p.policy_margin - p.floored_margins))


@_loss("anchored", ("anchored_delta",))
def anchored(p: PairLogps) -> Tensor:
    """−log σ(βu_w − δ): the chosen side's likelihood must not fall (mDPO's anchored term, arXiv 2406.11839)."""
    return -log_sigmoid(p.rewards[0] - p.settings.anchored_delta)


@_loss("modpo", ("modpo",), needs=("margins",))
def modpo(p: PairLogps) -> Tensor:
    """−log σ((1/w_1)·[z − Σ_{j≥2} w_j·(r_j(y_w) − r_j(y_l))]) (MODPO, arXiv 2310.03708)."""
    assert p.margins is not None
    return -log_sigmoid((p.z - p.margins) / p.settings.first_weight)


@_loss("simpo", ("simpo_gamma",), needs=("tokens",), reads_references=False)
def simpo(p: PairLogps) -> Tensor:
    """−log σ(β·(ℓ_θ(y_w)/|y_w| − ℓ_θ(y_l)/|y_l|) − γ), without a reference (SimPO, arXiv 2405.14734)."""
    return -log_sigmoid(p.beta * p.mean_margin(p.chosen, p.rejected) - p.settings.simpo_gamma)
