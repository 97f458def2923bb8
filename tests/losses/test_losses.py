"""Preference losses against hand-worked numbers, TRL's formulas, and finite differences."""

import math

import numpy as np
import pytest
import torch
from flat_loss import doubles, one_pair, preference_loss
from pydantic import ValidationError
from tiny_methods import settings_of

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses.functional import LOSSES
from mrpo_pipeline.targets.compute import compute_targets


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def exactly(value):
    return pytest.approx(value, rel=0, abs=1e-12)


def test_sigmoid_by_hand():
    """Policy (−10, −20), reference (−12, −18): log-ratios 2 and −2; z = 0.5·4 = 2; −log σ(2) = log(1 + e^−2).

    Rewards 0.5·2 = 1 and 0.5·(−2) = −1.
    """
    result = one_pair((-10, -20), (-12, -18), beta=0.5)
    assert result.losses.item() == exactly(math.log(1 + math.exp(-2)))
    assert (result.chosen_rewards.item(), result.rejected_rewards.item()) == (exactly(1), exactly(-1))


def test_sigmoid_with_label_smoothing_by_hand():
    """z = 2 as above, s = 0.1: 0.9·log(1 + e^−2) + 0.1·log(1 + e^2)."""
    result = one_pair((-10, -20), (-12, -18), beta=0.5, label_smoothing=0.1)
    assert result.losses.item() == exactly(0.9 * math.log(1 + math.exp(-2)) + 0.1 * math.log(1 + math.exp(2)))


@pytest.mark.parametrize(("rejected", "expected"), [(-22, 0.0), (-14, 0.6), (-9, 1.1)])
def test_hinge_by_hand(rejected, expected):
    """Policy (−10, y_l), reference (−12, −12), β = 0.1: z = 0.1·(2 − (y_l + 12)).

    y_l = −22: z = 0.1·12 = 1.2, past the hinge: 0. y_l = −14: z = 0.4, 1 − z = 0.6. y_l = −9: z = −0.1, 1.1.
    """
    assert one_pair((-10, rejected), (-12, -12), loss="hinge").losses.item() == exactly(expected)


def test_ipo_by_hand_on_means_per_policy_token():
    """Log-ratios 2 over 4 tokens and −2 over 8: means 0.5 and −0.25, difference 0.75; β = 0.5: (0.75 − 1)² = 0.0625.

    The rewards stay those of the sums: 0.5·2 and 0.5·(−2).
    """
    result = one_pair(
        (-10, -20), (-12, -18), beta=0.5, loss="ipo", chosen_lengths=doubles(4), rejected_lengths=doubles(8)
    )
    assert result.losses.item() == exactly(0.0625)
    assert (result.chosen_rewards.item(), result.rejected_rewards.item()) == (exactly(1), exactly(-1))


def test_multi_dpo_by_hand():
    """Policy (−10, −20), β = 0.5, α = (1/4, 3/4). Reference 1 (−12, −18): z = 2; reference 2 (−11, −19): z = 0.5·2 = 1.

    Loss ¼·log(1 + e^−2) + ¾·log(1 + e^−1). Rewards: ¼·1 + ¾·0.5 = 0.625, and its negative.
    """
    result = one_pair((-10, -20), [(-12, -18), (-11, -19)], weights=(0.25, 0.75), beta=0.5)
    assert result.losses.item() == exactly(0.25 * math.log(1 + math.exp(-2)) + 0.75 * math.log(1 + math.exp(-1)))
    assert result.chosen_rewards.item() == exactly(0.625)
    assert result.rejected_rewards.item() == exactly(-0.625)


def test_units_divide_the_log_ratios_by_hand():
    """Log-ratios 2 over 4 units and −2 over 8: 0.5 and −0.25; β = 2: z = 1.5, rewards 1 and −0.5."""
    units = {"chosen_units": doubles(4), "rejected_units": doubles(8)}
    result = one_pair((-10, -20), (-12, -18), beta=2, **units)
    assert result.losses.item() == exactly(math.log(1 + math.exp(-1.5)))
    assert (result.chosen_rewards.item(), result.rejected_rewards.item()) == (exactly(1), exactly(-0.5))
    ipo = one_pair((-10, -20), (-12, -18), beta=2, loss="ipo", **units)
    assert ipo.losses.item() == exactly((0.75 - 0.25) ** 2), "already means: not divided by tokens again"


def test_sft_loss_is_nats_per_token():
    """30 nats over 10 tokens, whatever the unit; as the SFT term beside a hinge loss of 0, ½·3."""
    lengths = {"chosen_lengths": doubles(10), "rejected_lengths": doubles(2)}
    assert one_pair((-30, -8), (-3, -4), loss="sft", **lengths).losses.item() == exactly(3)
    units = {"chosen_units": doubles(60), "rejected_units": doubles(9)}
    assert one_pair((-30, -8), (-3, -4), loss="sft", **lengths, **units).losses.item() == exactly(3)
    both = one_pair((-30, -80), (-30, -40), loss="hinge", sft_weight=0.5, **lengths)
    assert both.losses.item() == exactly(1.5)
    assert {name: term.item() for name, term in both.terms.items()} == {"hinge": 0, "sft": exactly(3)}


@pytest.mark.parametrize("size", [5.0, 5000.0])
def test_a_policy_at_its_anchor_has_loss_ln_2_and_no_margin_at_any_sequence_length(size):
    """The policy's sums in float32, as in a trainer; the anchor's in float64, as from the cache."""
    random = np.random.default_rng(0)
    chosen, rejected = -size * random.uniform(0.9, 1.1, (2, 64))
    result = preference_loss(
        torch.tensor(chosen), torch.tensor(rejected), column(*chosen), column(*rejected), column(*[1.0] * 64), beta=0.1
    )
    assert torch.all((result.losses - math.log(2)).abs() < 1e-12)
    rounded = preference_loss(
        torch.tensor(chosen).float(),
        torch.tensor(rejected).float(),
        column(*chosen),
        column(*rejected),
        column(*[1.0] * 64),
        beta=0.1,
    )
    assert torch.all((rounded.losses - math.log(2)).abs() < 1e-4)
    assert torch.all((rounded.chosen_rewards - rounded.rejected_rewards).abs() < 1e-4)


def test_the_reference_is_not_rounded_to_the_policys_precision():
    """ℓ_θ = −5000 exactly in float32; the reference lies 1e−5 nats below, which float32 cannot hold next to 5000."""
    result = preference_loss(
        torch.tensor([-5000.0]), torch.tensor([-5000.0]), column(-5000.00001), column(-5000.0), column(1.0), beta=1000.0
    )
    assert result.chosen_rewards.item() == pytest.approx(0.01, rel=1e-4)
    assert result.losses.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_losses_come_back_in_float32_at_least(dtype, expected):
    logps = torch.tensor([-8.0], dtype=dtype)
    result = preference_loss(logps, logps, column(-8.0), column(-8.0), column(1.0), beta=0.1)
    assert {tensor.dtype for tensor in result[:3]} == {expected}


@pytest.mark.parametrize("sign", [1, -1])
def test_far_margins_neither_overflow_nor_lose_their_gradient(sign):
    policy = torch.tensor([sign * 20000.0], requires_grad=True)
    result = preference_loss(policy, torch.tensor([0.0]), column(0.0), column(0.0), column(1.0), beta=0.1)
    result.losses.sum().backward()
    assert result.losses.item() == pytest.approx(0.0 if sign > 0 else 2000.0)
    assert policy.grad.item() == pytest.approx(0.0 if sign > 0 else -0.1)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("references", [1, 3])
def test_gradients_agree_with_finite_differences(loss, references):
    random = torch.Generator().manual_seed(1)

    def uniform(*shape):
        return -8 * torch.rand(*shape, generator=random, dtype=torch.float64)

    weights = torch.softmax(uniform(4, references), dim=1)
    chosen, rejected = uniform(4, references), uniform(4, references)
    options = {"chosen_lengths": torch.tensor([3, 4, 5, 6]), "rejected_lengths": torch.tensor([6, 5, 4, 3])}
    options |= {"margins": uniform(4), "floored_margins": -uniform(4), "first_weight": 0.6, "reward_mean": -0.2}
    if "label_smoothing" in LOSSES[loss].settings:
        options["label_smoothing"] = 0.1

    def losses(policy_chosen, policy_rejected):
        return preference_loss(
            policy_chosen, policy_rejected, chosen, rejected, weights, beta=0.3, loss=loss, **options
        ).losses

    policy = tuple(uniform(4).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(losses, policy)


def test_the_gradient_reaches_only_the_policy_and_rewards_have_none():
    policy = torch.tensor([-3.0], requires_grad=True)
    reference = column(-3.0).requires_grad_()
    result = preference_loss(policy, torch.tensor([-4.0]), reference, column(-4.0), column(1.0), beta=0.1)
    assert not result.chosen_rewards.requires_grad
    assert not result.rejected_rewards.requires_grad
    result.losses.sum().backward()
    assert policy.grad.dtype == torch.float32
    assert policy.grad.item() == pytest.approx(-0.05)  # −β·σ(−0)


def losses_of(policy, chosen, rejected, method, **options):
    inputs = compute_targets(chosen, rejected, *method).loss_inputs()
    return preference_loss(
        policy[0],
        policy[1],
        torch.from_numpy(inputs.reference_chosen),
        torch.from_numpy(inputs.reference_rejected),
        torch.from_numpy(inputs.weights),
        beta=0.1,
        **options,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_with_one_reference_mrpo_multi_dpo_single_and_dpo_have_the_same_loss_bit_for_bit(loss):
    random = np.random.default_rng(5)
    chosen, rejected = -300 * random.random((2, 16, 1))
    policy = torch.tensor(-300 * random.random((2, 16)), dtype=torch.float32)
    lengths = {"chosen_lengths": torch.full((16,), 9), "rejected_lengths": torch.full((16,), 7)}
    lengths |= {"margins": torch.linspace(-1, 1, 16), "floored_margins": torch.linspace(0, 1, 16)}
    lengths |= {"label_smoothing": 0.1} if loss == "exo" else {}
    methods = [
        {"name": "dpo"},
        *({"aggregate": aggregate} for aggregate in ("single:base", "harmonic", "geometric", "arithmetic")),
        {"name": "multi-dpo"},
    ]
    results = [
        losses_of(policy, chosen, rejected, settings_of(reference_names=["base"], **changes), loss=loss, **lengths)
        for changes in methods
    ]
    for result in results[1:]:
        assert all(torch.equal(here, there) for here, there in zip(result[:3], results[0][:3], strict=True))


def test_multi_dpo_is_the_weighted_sum_of_the_dpo_losses_of_its_references():
    random = np.random.default_rng(6)
    chosen, rejected = -300 * random.random((2, 16, 3))
    policy = torch.tensor(-300 * random.random((2, 16)))
    names = ["a", "b", "c"]
    weights = [0.2, 0.0, 0.8]
    method = settings_of(reference_names=names, name="multi-dpo", weights=weights, trust_region="off")
    multi = losses_of(policy, chosen, rejected, method)
    singles = [
        losses_of(policy, chosen, rejected, settings_of(reference_names=names, aggregate=f"single:{name}"))
        for name in names
    ]
    expected = sum(weight * single.losses for weight, single in zip(weights, singles, strict=True))
    torch.testing.assert_close(multi.losses, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "kto"}, "'sigmoid', 'hinge'"),
        *(
            ({"loss": loss, "label_smoothing": 0.1}, "label smoothing is defined for sigmoid, robust, exo")
            for loss in ("hinge", "ipo", "bco", "simpo", "modpo")
        ),
        ({"loss": {"hinge": 0.5, "sft": 1.0}, "label_smoothing": 0.1}, "label smoothing is defined for"),
        ({"loss": "exo"}, "label_smoothing is 0 with method.loss exo"),
        ({"loss": "mpo", "sft_weight": 0.5}, "SFT term of its own"),
        ({"loss": {"sigmoid": 1.0, "sft": 1.0}, "sft_weight": 0.5}, "SFT term of its own"),
        ({"loss": {"bco": 1, "bco_pair": 2}}, "each loss once"),
        ({"loss": {}}, "a loss at least"),
        ({"loss": {"sigmoid": 0.0}}, "a loss at least"),
        ({"loss": {"sigmoid": -1.0}}, "greater than or equal to 0"),
        ({"loss": {"sigmoid": 1.0, "nca": 0.1}, "f_divergence_type": "forward_kl"}, "with the loss nca"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"label_smoothing": -0.1}, "greater than or equal to 0"),
    ],
)
def test_losses_that_are_not_offered_are_refused(options, message):
    with pytest.raises((UserError, ValidationError), match=message):
        one_pair((-1, -2), (-1, -2), **options)


def test_shapes_that_would_broadcast_to_a_wrong_loss_are_refused():
    logps, references = torch.zeros(4), torch.zeros(4, 2)
    for policy, chosen, weights in (
        (logps, references[:, 0], references),
        (logps, references, references[:, :1]),
        (logps[:, None], references, references),
        (logps[:2], references, references),
    ):
        with pytest.raises(ValueError, match=r"expected \(B,\) twice and \(B, R\) three times"):
            preference_loss(policy, policy, chosen, references, weights, beta=0.1)
    with pytest.raises(ValueError, match="counts"):
        one_pair((-1, -2), (-1, -2), loss="ipo")
    with pytest.raises(ValueError, match="counts"):
        one_pair((-1, -2), (-1, -2), chosen_units=doubles(2))
