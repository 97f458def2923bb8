"""Boundaries of the losses: limits, defaults, shapes and types, one at a time.

`tests/soak/mutate_targets.py` found that no other test covers these.
"""

import math

import pytest
import torch
from flat_loss import one_pair, preference_loss
from pydantic import ValidationError

from mrpo_pipeline.losses.settings import LossSettings, check_loss


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def exactly(value):
    return pytest.approx(value, rel=0, abs=1e-12)


def test_label_smoothing_may_be_just_below_one_half():
    """z = 0.5·4 = 2, s = 0.4: 0.6·log(1 + e^−2) + 0.4·log(1 + e^2)."""
    check_loss(LossSettings(label_smoothing=0.49))
    result = preference_loss(
        doubles(-10), doubles(-20), doubles(-12)[:, None], doubles(-18)[:, None], doubles(1)[:, None],
        beta=0.5, label_smoothing=0.4,
    )  # fmt: skip
    assert result.losses.item() == exactly(0.6 * math.log(1 + math.exp(-2)) + 0.4 * math.log(1 + math.exp(2)))


def test_the_preference_of_modpo_has_weight_1_by_default():
    """z = 2, margin 0.5, w_1 = 1: log(1 + e^−1.5)."""
    result = preference_loss(
        doubles(-10), doubles(-20), doubles(-12)[:, None], doubles(-18)[:, None], doubles(1)[:, None],
        beta=0.5, loss="modpo", margins=doubles(0.5),
    )  # fmt: skip
    assert result.losses.item() == exactly(math.log(1 + math.exp(-1.5)))


@pytest.mark.parametrize(
    ("key", "lowest", "refused"),
    [
        ("beta", 1e-9, 0.0),
        ("sft_weight", 0.0, -1e-9),
        ("simpo_gamma", 0.0, -1e-9),
        ("discopop_tau", 1e-9, 0.0),
        ("label_smoothing", 0.0, -1e-9),
        ("label_smoothing", 0.499, 0.5),
        ("loss", {"sigmoid": 1.0, "sft": 0.0}, {"sigmoid": 1.0, "sft": -1e-9}),
    ],
)
def test_a_setting_may_be_at_its_bound_and_not_beyond(key, lowest, refused):
    assert getattr(LossSettings(**{key: lowest}), key) == lowest
    with pytest.raises(ValidationError, match=key):
        LossSettings(**{key: refused})


FITTING = {
    "policy_chosen_logps": (4,),
    "policy_rejected_logps": (4,),
    "reference_chosen": (4, 2),
    "reference_rejected": (4, 2),
    "weights": (4, 2),
}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("policy_chosen_logps", (1,)),
        ("policy_chosen_logps", (4, 1)),
        ("policy_rejected_logps", (1,)),
        ("policy_rejected_logps", (4, 1)),
        *((name, shape) for name in list(FITTING)[2:] for shape in ((1, 2), (4, 1), (4,), (4, 2, 1))),
    ],
)
def test_one_argument_of_another_shape_is_refused(name, shape):
    """Each of these would broadcast to a loss with another shape."""
    arguments = {key: torch.zeros(shape if key == name else fits) for key, fits in FITTING.items()}
    with pytest.raises(ValueError, match=r"expected \(B,\) twice and \(B, R\) three times"):
        preference_loss(**arguments, beta=0.1)


@pytest.mark.parametrize("shape", [(4,), (4, 2, 1), (1, 2), (3, 2)])
def test_references_and_weights_of_one_wrong_shape_are_refused(shape):
    arguments = {key: torch.zeros(fits if key.startswith("policy") else shape) for key, fits in FITTING.items()}
    with pytest.raises(ValueError, match="three times"):
        preference_loss(**arguments, beta=0.1)


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ({"chosen_units": doubles(2)}, "none, expected"),
        ({"rejected_units": doubles(2)}, "none, expected"),
        ({"chosen_units": doubles(2, 2), "rejected_units": doubles(2)}, r"\(2,\), expected \(1,\)"),
        ({"chosen_units": doubles(2), "rejected_units": doubles(2, 2)}, r"\(2,\), expected \(1,\)"),
        ({"loss": "ipo", "chosen_lengths": doubles(3), "rejected_lengths": doubles(2, 2)}, r"\(2,\), expected"),
    ],
)
def test_counts_of_only_one_side_or_of_another_shape_are_refused(counts, found):
    with pytest.raises(ValueError, match=found):
        preference_loss(
            doubles(-1), doubles(-2), doubles(-1)[:, None], doubles(-2)[:, None], doubles(1)[:, None],
            beta=0.1, **counts,
        )  # fmt: skip


def test_rewards_carry_no_gradient_on_either_side():
    chosen, rejected = doubles(-3).requires_grad_(), doubles(-4).requires_grad_()
    result = preference_loss(
        chosen, rejected, doubles(-3)[:, None], doubles(-4)[:, None], doubles(1)[:, None], beta=0.1
    )
    assert result.losses.requires_grad
    assert not result.chosen_rewards.requires_grad
    assert not result.rejected_rewards.requires_grad
    assert not result.terms["sigmoid"].requires_grad


def test_losses_have_the_dtype_of_the_policys_chosen_side():
    result = preference_loss(
        doubles(-3), doubles(-4).float(), doubles(-3)[:, None], doubles(-4)[:, None], doubles(1)[:, None], beta=0.1
    )
    assert {tensor.dtype for tensor in result[:3]} == {torch.float64}


def test_the_alpha_divergence_is_clamped_at_e_to_the_80():
    """α = 3, u_l = 100: the score is (e^80 − 1)/2, not (e^200 − 1)/2; u_w = 0: its score is 0."""
    settings = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 3.0}
    for u, exponent in ((100, 80), (39.75, 79.5)):
        result = one_pair(
            (-10, -1), (-10, -1 - u), loss="ipo", beta=1, chosen_units=doubles(1), rejected_units=doubles(1), **settings
        )
        score = math.expm1(exponent) / 2
        assert result.losses.item() == pytest.approx((-score - 0.5) ** 2, rel=1e-12)


@pytest.mark.parametrize(("distance", "score"), [(7e-7, 100.0), (1.5e-6, math.expm1(1.5e-6 * 100) / 1.5e-6)])
def test_the_alpha_divergence_near_1_is_the_reverse_kl(distance, score):
    """u_w = 100 with α − 1 below and above 1e-6: u itself, and (e^(α−1)u − 1)/(α − 1) = 100.0075."""
    settings = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 + distance}
    result = one_pair((-1, -1), (-101, -1), loss="hinge", beta=0.001, **settings)
    assert 1 - result.losses.item() == pytest.approx(0.001 * score, rel=1e-7)


def test_with_units_ipo_and_sigmoid_norm_divide_by_them_alone():
    """Log-ratios 2 per 4 and −2 per 8: 0.5 and −0.25; β = 0.5: (0.75 − 1)² and −log σ(0.375). Tokens have no effect."""
    given = {"beta": 0.5, "chosen_units": doubles(4), "rejected_units": doubles(8)}
    given |= {"chosen_lengths": doubles(2), "rejected_lengths": doubles(2)}
    assert one_pair((-10, -20), (-12, -18), loss="ipo", **given).losses.item() == exactly(0.0625)
    assert one_pair((-10, -20), (-12, -18), loss="sigmoid-norm", **given).losses.item() == exactly(
        math.log1p(math.exp(-0.375))
    )


def test_rewards_of_several_pairs_are_each_pairs_own():
    """β = 0.5, two references with α (0.25, 0.75) and (1, 0): rewards 0.5·(0.25·1 + 0.75·3) and 0.5·2; −0.5·(0.25·1 + 0.75·2) and 0."""
    chosen, rejected = doubles(-10, -10), doubles(-20, -20)
    references = (
        torch.stack([doubles(-11, -13), doubles(-12, -12)]),
        torch.stack([doubles(-19, -18), doubles(-20, -20)]),
    )
    result = preference_loss(chosen, rejected, *references, torch.stack([doubles(0.25, 0.75), doubles(1, 0)]), beta=0.5)
    assert result.chosen_rewards.tolist() == [exactly(1.25), exactly(1)]
    assert result.rejected_rewards.tolist() == [exactly(-0.875), exactly(0)]
