"""MinorDPO, MPO and MODPO against hand-worked numbers, and properties that hold for any numbers."""

import math

import numpy as np
import pytest
import torch
from flat_loss import doubles, one_pair, preference_loss
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_pipeline.losses.functional import LOSSES


def exactly(value):
    return pytest.approx(value, rel=1e-12)


def sigma(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    """−log σ(−x)."""
    return math.log(1 + math.exp(x))


def test_minor_dpo_by_hand_where_the_policy_finds_the_rejected_side_likelier_than_the_reference():
    """arXiv 2408.09834. u_w = −10 − (−12) = 2, u_l = −17 − (−18) = 1 > 0: as DPO, z = ½·(2 − 1) = 0.5.

    −log σ(0.5) = log(1 + e^−0.5) = log 1.6065… = 0.4741.
    """
    result = one_pair((-10, -17), (-12, -18), beta=0.5, loss="minor-dpo")
    assert result.losses.item() == exactly(softplus(-0.5))
    assert result.losses.item() == pytest.approx(0.4741, abs=1e-4)
    assert (result.chosen_rewards.item(), result.rejected_rewards.item()) == (exactly(1.0), exactly(0.5))


def test_minor_dpo_by_hand_where_the_policy_finds_the_rejected_side_less_likely():
    """u_w = 2, u_l = −20 − (−18) = −2 < 0, so max(0, u_l) = 0: z = ½·2 = 1, and not ½·4 as DPO has it.

    −log σ(1) = 0.3133; the gradient with respect to ℓ_θ(y_l) is 0, to ℓ_θ(y_w) it is −β·σ(−1) = −0.5·0.2689.
    """
    policy = doubles(-10).requires_grad_(), doubles(-20).requires_grad_()
    ones = doubles(1)[:, None]
    result = preference_loss(*policy, doubles(-12)[:, None], doubles(-18)[:, None], ones, beta=0.5, loss="minor-dpo")
    assert result.losses.item() == exactly(softplus(-1))
    result.losses.sum().backward()
    assert policy[1].grad.item() == 0
    assert policy[0].grad.item() == exactly(-0.5 / (1 + math.e))
    assert result.rejected_rewards.item() == exactly(-1.0), "rewards stay β·u: what is reported is not cut off"


LENGTHS = {"chosen_lengths": doubles(5), "rejected_lengths": doubles(10)}


def test_mpo_by_hand():
    """arXiv 2411.10442. u_w = 2, u_l = −2; β = ½: rewards 1 and −1, z = 2; δ = 0.25.

    Preference −log σ(2) = log(1 + e^−2). Quality −log σ(1 − 0.25) − log σ(−(−1 − 0.25)) = log(1 + e^−0.75) + log(1 + e^−1.25).
    0.8·0.1269 + 0.2·(0.3873 + 0.2519) = 0.2294; and 1·(10 nats / 5 tokens).
    """
    for loss in ("mpo", {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}):
        result = one_pair((-10, -20), (-12, -18), beta=0.5, loss=loss, reward_mean=0.25, **LENGTHS)
        expected = 0.8 * softplus(-2) + 0.2 * (softplus(-0.75) + softplus(-1.25))
        assert expected == pytest.approx(0.2294, abs=1e-4)
        assert result.losses.item() == exactly(expected + 2)
        assert result.terms["bco"].item() == exactly(softplus(-0.75) + softplus(-1.25)), "without its weight"
    bco = one_pair((-10, -20), (-12, -18), beta=0.5, loss="bco", reward_mean=0.25)
    assert bco.losses.item() == exactly(softplus(-0.75) + softplus(-1.25))


# Policy (−10, −20), reference (−12, −18), β = ½: u_w = 2, u_l = −2, z = 2, Δ_θ = 10, Δ_π̃ = 6.
BY_HAND = {
    "robust": ({"label_smoothing": 0.1}, (0.9 * softplus(-2) - 0.1 * softplus(2)) / 0.8),
    "exo": (
        {"label_smoothing": 0.1},
        (math.log(sigma(2)) - math.log(0.9)) * sigma(2) + (math.log(sigma(-2)) - math.log(0.1)) * sigma(-2),
    ),
    "nca": ({}, softplus(-1) + 0.5 * softplus(1) + 0.5 * softplus(-1)),
    "sppo": ({}, (2 - 1) ** 2 + (-2 + 1) ** 2),
    "aot": ({}, softplus(-2)),
    "aot-unpaired": ({}, softplus(-2)),
    "apo-zero": ({}, 1 - sigma(1) + sigma(-1)),
    "apo-down": ({}, sigma(1) + 1 - sigma(2)),
    "discopop": ({"discopop_tau": 2.0}, (1 - sigma(1)) * softplus(-2) + sigma(1) * math.exp(-2)),
    "sigmoid-norm": (LENGTHS, softplus(-0.5 * (2 / 5 + 2 / 10))),
    "hypo": ({}, softplus(-0.5 * (10 - 6))),
    "hypo-each": ({"floored_margins": 7.0}, softplus(-0.5 * (10 - 7))),
    "anchored": ({"anchored_delta": 0.25}, softplus(-(1 - 0.25))),
    "simpo": ({"simpo_gamma": 0.3, **LENGTHS}, softplus(-(0.5 * (-10 / 5 + 20 / 10) - 0.3))),
}


@pytest.mark.parametrize("loss", BY_HAND)
def test_a_loss_by_hand(loss):
    options, expected = BY_HAND[loss]
    assert one_pair((-10, -20), (-12, -18), beta=0.5, loss=loss, **options).losses.item() == exactly(expected)


def test_hypo_does_not_follow_a_reference_that_ranks_the_pair_wrongly():
    """Δ_θ = 10, Δ_π̃ = −13 − (−10) = −3 < 0: the margin is the policy's own, z = ½·10."""
    assert one_pair((-10, -20), (-13, -10), beta=0.5, loss="hypo").losses.item() == exactly(softplus(-5))
    units = {"chosen_units": doubles(4), "rejected_units": doubles(8)}
    of_units = one_pair((-10, -20), (-12, -32), beta=0.5, loss="hypo", **units)
    assert of_units.losses.item() == exactly(softplus(-0.5 * ((-2.5 + 2.5) - (-3 + 4))))


def test_aot_sorts_margins_over_the_batch():
    """Margins of the policy 4, 1 and of π̃ 0, 2: sorted (1, 4) and (0, 2), differences 1 and 2."""
    ones = doubles(1, 1)[:, None]
    batch = (doubles(-1, -2), doubles(-5, -3), doubles(-1, -1)[:, None], doubles(-1, -3)[:, None], ones)
    result = preference_loss(*batch, beta=1.0, loss="aot")
    assert result.losses.tolist() == [exactly(softplus(-1)), exactly(softplus(-2))]
    """u_w = (0, −1), u_l = (−4, 0): sorted (−1, 0) and (−4, 0), differences 3 and 0."""
    result = preference_loss(*batch, beta=1.0, loss="aot-unpaired")
    assert result.losses.tolist() == [exactly(softplus(-3)), exactly(softplus(0))]


def test_discopop_is_finite_far_from_the_reference():
    """z = −1,000: e^1000 is infinite in float64, and its share σ(−1000/τ) is 0; what is left is −log σ(z) = 1,000."""
    assert one_pair((-10_000, 0), (0, 0), loss="discopop").losses.item() == exactly(1000)


def test_losses_without_a_reference_do_not_move_with_it():
    for loss in ("simpo", "sft"):
        here, there = (one_pair((-10, -20), ref, loss=loss, **LENGTHS).losses.item() for ref in ((-12, -18), (-90, -1)))
        assert here == there


def test_modpo_by_hand():
    """arXiv 2310.03708. u_w = 2, u_l = −2, β = ½: z = 2. One other objective, w_2 = 0.25, r_2 = 3 on y_w and −1 on y_l.

    margin = 0.25·(3 − (−1)) = 1; w_1 = 0.75: (2 − 1)/0.75 = 4/3; −log σ(4/3) = log(1 + e^(−4/3)) = 0.2339.
    """
    result = one_pair((-10, -20), (-12, -18), beta=0.5, loss="modpo", margins=1.0, first_weight=0.75)
    assert result.losses.item() == exactly(softplus(-4 / 3))
    assert result.losses.item() == pytest.approx(0.2339, abs=1e-4)
    assert result.chosen_rewards.item() == exactly(1.0)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("minor-dpo", lambda u_w, u_l: softplus(-0.5 * (u_w - max(0, u_l)))),
        ("bco", lambda u_w, u_l: softplus(0.1 - 0.5 * u_w) + softplus(0.5 * u_l - 0.1)),
        ("hypo", lambda u_w, u_l: softplus(-0.5 * (10 - max(0, 10 - u_w + u_l)))),
        ("modpo", lambda u_w, u_l: softplus(-(0.5 * (u_w - u_l) - 0.4) / 0.8)),
    ],
)  # fmt: skip
def test_with_multi_dpo_each_reference_has_the_loss_of_its_own_log_ratios(loss, expected):
    """Two references at (−12, −18) and (−11, −21), weights ¼ and ¾: log-ratios (2, −2) and (1, 1), δ and margin alike."""
    result = one_pair(
        (-10, -20), [(-12, -18), (-11, -21)], weights=(0.25, 0.75), beta=0.5, loss=loss,
        reward_mean=0.1, margins=0.4, first_weight=0.8,
    )  # fmt: skip
    assert result.losses.item() == exactly(0.25 * expected(2, -2) + 0.75 * expected(1, 1))


def test_units_divide_the_log_ratios_of_every_loss():
    """Log-ratios 2 over 4 units and −2 over 8 are 0.5 and −0.25: as if the sums had been those."""
    units = {"chosen_units": doubles(4), "rejected_units": doubles(8)}
    for loss in ("minor-dpo", "bco", "modpo", "nca", "sppo", "anchored", "aot", "aot-unpaired"):
        options = {"beta": 2.0, "loss": loss, "reward_mean": 0.1, "margins": 0.3, "first_weight": 0.5}
        divided = one_pair((-10, -20), (-12, -18), **options, **units)
        plain = one_pair((0.5, -0.25), (0, 0), **options)
        assert divided.losses.item() == exactly(plain.losses.item())


logp = st.floats(-500, 0)
pairs = st.lists(st.tuples(logp, logp, logp, logp), min_size=1, max_size=5)


def losses_of(rows, beta, loss, **options):
    values = torch.tensor(rows, dtype=torch.float64)
    ones = torch.ones(len(rows), 1, dtype=torch.float64)
    return preference_loss(
        values[:, 0], values[:, 1], values[:, 2:3], values[:, 3:4], ones, beta=beta, loss=loss, **options
    ).losses.numpy()


@settings(deadline=None)
@given(pairs, st.floats(0.01, 1))
def test_limits_in_which_they_are_dpo(rows, beta):
    """A sum with one loss, MODPO with the preference only, MinorDPO with u_l ≥ 0: each is the sigmoid loss."""
    dpo = losses_of(rows, beta, "sigmoid")
    alone = losses_of(rows, beta, {"sigmoid": 1.0, "bco": 0.0}, reward_mean=3.0)
    np.testing.assert_allclose(alone, dpo, rtol=1e-12)
    no_other = losses_of(rows, beta, "modpo", margins=torch.zeros(len(rows)), first_weight=1.0)
    np.testing.assert_allclose(no_other, dpo, rtol=1e-12)
    minor, liked = losses_of(rows, beta, "minor-dpo"), np.array([row[1] >= row[3] for row in rows])
    np.testing.assert_allclose(minor[liked], dpo[liked], rtol=1e-12)
    assert np.all(minor >= dpo * (1 - 1e-12)), "what is not pushed down further can only cost more"


@settings(deadline=None)
@given(pairs, st.floats(0.01, 1), st.floats(-5, 5))
def test_the_quality_loss_is_least_informed_where_the_shift_is_the_reward(rows, beta, shift):
    """Both terms by their definition, in numpy; ln 2 for a side whose reward is δ."""
    values = np.array(rows)
    rewards = beta * (values[:, :2] - values[:, 2:])
    expected = np.logaddexp(0, shift - rewards[:, 0]) + np.logaddexp(0, rewards[:, 1] - shift)
    found = losses_of(rows, beta, "bco", reward_mean=shift)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    at_the_mean = losses_of([(-3, -5, -3, -5)], beta, "bco")
    assert at_the_mean[0] == exactly(2 * math.log(2))


def test_modpo_without_margins_is_refused():
    with pytest.raises(ValueError, match="margins of the other objectives"):
        one_pair((-1, -2), (-1, -2), beta=0.1, loss="modpo")


@pytest.mark.parametrize("loss", LOSSES)
def test_far_from_the_reference_no_loss_overflows(loss):
    options = {"margins": 1.0, "floored_margins": 1.0, "chosen_lengths": doubles(9), "rejected_lengths": doubles(9)}
    options |= {"label_smoothing": 0.1} if loss == "exo" else {}
    result = one_pair((-9000, -10), (-10, -9000), beta=0.5, loss=loss, **options)
    assert math.isfinite(result.losses.item())


def test_simpo_divides_by_the_unit_of_normalize_where_there_is_one() -> None:
    """Policy (−10, −20) per 5 bytes: −2 and −4; β = 2, γ = 1: −log σ(2·2 − 1). Tokens (4, 8) would give −2.5 on both sides."""
    result = one_pair(
        (-10, -20), (0, 0), loss="simpo", beta=2, simpo_gamma=1, chosen_lengths=doubles(4), rejected_lengths=doubles(8),
        chosen_units=doubles(5), rejected_units=doubles(5),
    )  # fmt: skip
    assert result.losses.item() == pytest.approx(math.log(1 + math.exp(-3)), abs=1e-12)
