"""MinorDPO, MPO and MODPO against arithmetic worked by hand, and what must hold of them whatever the numbers."""

import math

import numpy as np
import pytest
import torch
from flat_loss import preference_loss
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_pipeline.losses.settings import LOSSES


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def one_pair(policy, reference, *, weights=(1.0,), **options):
    """The loss of one pair; ``policy`` is (chosen, rejected), ``reference`` the same, or a list of such for R > 1."""
    references = doubles(*np.ravel(reference)).reshape(-1, 2)
    if "margins" in options:
        options["margins"] = doubles(options["margins"])
    return preference_loss(
        doubles(policy[0]), doubles(policy[1]), references[:, 0][None], references[:, 1][None], doubles(*weights)[None], **options
    )  # fmt: skip


def exactly(value):
    return pytest.approx(value, rel=1e-12)


def softplus(x):
    """−log σ(−x)."""
    return math.log(1 + math.exp(x))


def test_minor_dpo_by_hand_where_the_policy_likes_the_rejected_side_more_than_the_reference():
    """arXiv 2408.09834. u_w = −10 − (−12) = 2, u_l = −17 − (−18) = 1 > 0: as DPO, z = ½·(2 − 1) = 0.5.

    −log σ(0.5) = log(1 + e^−0.5) = log 1.6065… = 0.4741.
    """
    result = one_pair((-10, -17), (-12, -18), beta=0.5, loss="minor-dpo")
    assert result.losses.item() == exactly(softplus(-0.5))
    assert result.losses.item() == pytest.approx(0.4741, abs=1e-4)
    assert (result.chosen_rewards.item(), result.rejected_rewards.item()) == (exactly(1.0), exactly(0.5))


def test_minor_dpo_by_hand_where_the_rejected_side_is_liked_less_already():
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


def test_mpo_by_hand():
    """arXiv 2411.10442. u_w = 2, u_l = −2; β = ½: rewards 1 and −1, z = 2; δ = 0.25.

    Preference −log σ(2) = log(1 + e^−2). Quality −log σ(1 − 0.25) − log σ(−(−1 − 0.25)) = log(1 + e^−0.75) + log(1 + e^−1.25).
    0.8·0.1269 + 0.2·(0.3873 + 0.2519) = 0.2294. The SFT term is added by the caller.
    """
    result = one_pair((-10, -20), (-12, -18), beta=0.5, loss="mpo", reward_mean=0.25)
    expected = 0.8 * softplus(-2) + 0.2 * (softplus(-0.75) + softplus(-1.25))
    assert result.losses.item() == exactly(expected)
    assert expected == pytest.approx(0.2294, abs=1e-4)
    other = one_pair(
        (-10, -20), (-12, -18), beta=0.5, loss="mpo", reward_mean=0.25, preference_weight=0, quality_weight=1
    )
    assert other.losses.item() == exactly(softplus(-0.75) + softplus(-1.25))


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
        ("mpo", lambda u_w, u_l: 0.8 * softplus(-0.5 * (u_w - u_l)) + 0.2 * (softplus(0.1 - 0.5 * u_w) + softplus(0.5 * u_l - 0.1))),
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
    for loss in ("minor-dpo", "mpo", "modpo"):
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
    """MPO without quality, MODPO with nothing beside the preference, MinorDPO where u_l ≥ 0: the sigmoid loss."""
    dpo = losses_of(rows, beta, "sigmoid")
    alone = losses_of(rows, beta, "mpo", preference_weight=1.0, quality_weight=0.0, reward_mean=3.0)
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
    found = losses_of(rows, beta, "mpo", preference_weight=0.0, quality_weight=1.0, reward_mean=shift)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    at_the_mean = losses_of([(-3, -5, -3, -5)], beta, "mpo", preference_weight=0.0, quality_weight=1.0)
    assert at_the_mean[0] == exactly(2 * math.log(2))


def test_modpo_without_margins_is_refused():
    with pytest.raises(ValueError, match="margins of the other objectives"):
        one_pair((-1, -2), (-1, -2), beta=0.1, loss="modpo")


@pytest.mark.parametrize("loss", LOSSES)
def test_far_from_the_reference_no_loss_overflows(loss):
    options = {"margins": 1.0, "chosen_lengths": doubles(9), "rejected_lengths": doubles(9)}
    result = one_pair((-9000, -10), (-10, -9000), beta=0.5, loss=loss, **options)
    assert math.isfinite(result.losses.item())
