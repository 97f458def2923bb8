"""The settings of a loss: names, defaults and bounds, and which keys determine a loss."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses.functional import LOSSES
from mrpo_pipeline.losses.settings import LossSettings, Objective, check_loss

OTHER = {"alpha_divergence": {"f_divergence_type": "alpha_divergence"}, "js": {"f_divergence_type": "js_divergence"}}


def test_defaults() -> None:
    """Those of the papers and of TRL, which docs/recipes.md lists."""
    assert LossSettings().model_dump() == {
        "beta": 0.1, "loss": "sigmoid", "label_smoothing": 0.0, "sft_weight": 0.0, "discopop_tau": 0.05, "simpo_gamma": 1.0,
        "anchored_delta": 0.0, "bco_shift": "running-mean", "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
        "modpo": {},
    }  # fmt: skip
    assert Objective(weight=0.3).beta == 0.1


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("exo_pair", "exo"), ("nca_pair", "nca"), ("bco_pair", "bco"), ("sppo_hard", "sppo"), ("minordpo", "minor-dpo"),
        ("MinorDPO", "minor-dpo"), ("Sigmoid_Norm", "sigmoid-norm"),
    ],
)  # fmt: skip
def test_other_spellings(written: str, name: str) -> None:
    assert LossSettings(loss=written).loss == name
    assert LossSettings(loss={written: 2.0}).losses == {name: 2.0}


@pytest.mark.parametrize("loss", [3, None, ["sigmoid"], {3: 1.0}])
def test_what_is_no_name_is_refused(loss: Any) -> None:
    with pytest.raises(ValidationError, match="loss"):
        LossSettings(loss=loss)


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.0, 1.5])
def test_an_objectives_weight_is_between_0_and_1(weight: float) -> None:
    assert (Objective(weight=0.001).weight, Objective(weight=0.999).weight) == (0.001, 0.999)
    with pytest.raises(ValidationError, match="weight"):
        Objective(weight=weight)


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_an_objectives_beta_is_above_0(beta: float) -> None:
    assert Objective(weight=0.5, beta=0.001).beta == 0.001
    with pytest.raises(ValidationError, match="beta"):
        Objective(weight=0.5, beta=beta)


def test_a_loss_of_weight_0_is_none() -> None:
    assert LossSettings(loss={"sigmoid": 1.0, "bco": 0.0}).losses == {"sigmoid": 1.0}
    assert LossSettings(loss="hinge", sft_weight=0.3).losses == {"hinge": 1.0, "sft": 0.3}
    assert LossSettings(loss="mpo").losses == {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss": "bco"}, True),
        ({"loss": "mpo"}, True),
        ({"loss": "bco", "bco_shift": "zero"}, False),
        ({"loss": "sigmoid"}, False),
    ],
)
def test_only_bco_carries_a_mean_of_earlier_rewards(settings: dict[str, Any], expected: bool) -> None:
    assert LossSettings(**settings).has_reward_mean is expected


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        ({"loss": "hinge"}, {"f_divergence_type"}),
        ({"loss": "sigmoid"}, {"label_smoothing", "f_divergence_type"}),
        ({"loss": "sft"}, set()),
        ({"loss": "apo-zero"}, set()),
        ({"loss": {"apo-zero": 1.0, "hinge": 1.0}}, {"f_divergence_type"}),
        ({"loss": {"sft": 1.0, "simpo": 1.0}}, {"simpo_gamma"}),
        ({"loss": "hinge", **OTHER["js"]}, {"f_divergence_type"}),
        ({"loss": "hinge", **OTHER["alpha_divergence"]}, {"f_divergence_type", "f_alpha_divergence_coef"}),
    ],
)
def test_which_keys_are_read(settings: dict[str, Any], read: set[str]) -> None:
    assert LossSettings(**settings).settings_read() == read


def test_what_determines_a_loss() -> None:
    assert LossSettings(loss="bco", simpo_gamma=9).loss_in_use() == {
        "beta": 0.1, "loss": {"bco": 1.0}, "bco_shift": "running-mean",
    }  # fmt: skip
    modpo = LossSettings(loss="modpo", modpo={"length": Objective(weight=0.25, chosen="a", rejected="b")})
    assert modpo.loss_in_use() == {"beta": 0.1, "loss": {"modpo": 1.0}, "modpo": 0.75}


def test_the_error_names_the_losses_that_fit_a_divergence() -> None:
    fit = ", ".join(name for name in LOSSES if name not in ("nca", "apo-zero") and LOSSES[name].of_difference)
    assert fit.startswith("sigmoid, hinge, ipo") and fit.endswith("sft")
    with pytest.raises(UserError, match=f"expected one of {fit}\\. Set it"):
        check_loss(LossSettings(loss="nca", **OTHER["js"]))
    with pytest.raises(UserError, match="the loss apo-zero"):
        check_loss(LossSettings(loss={"hinge": 1.0, "apo-zero": 1.0}, **OTHER["js"]))


@pytest.mark.parametrize(
    ("loss", "named"), [("hinge", "method.loss hinge"), ({"hinge": 1.0, "bco": 1.0}, "hinge \\+ bco")]
)
def test_errors_name_the_loss(loss: Any, named: str) -> None:
    with pytest.raises(
        UserError, match=f"{named}.?.*label smoothing is defined for sigmoid, robust, exo, aot, aot-unpaired"
    ):
        check_loss(LossSettings(loss=loss, label_smoothing=0.1))
