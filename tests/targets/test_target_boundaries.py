"""Boundaries of the targets: tolerances, defaults, types and messages, one at a time.

`tests/soak/mutate_targets.py` found that no other test covers these.
"""

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_methods import settings_of

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.targets.aggregate import AGGREGATES, influence
from mrpo_pipeline.targets.compute import Targets, compute_targets
from mrpo_pipeline.targets.settings import TrustRegion, WeightsOptions, check_target
from mrpo_pipeline.targets.trust_region import band_widths, clip_to_anchor
from mrpo_pipeline.targets.weights import lift, temper

TWO = ["base", "other"]
SIDES = [[-10.0, -20.0]], [[-11.0, -17.0]]


def settings(names=TWO, **changes):
    return settings_of(reference_names=names, **{"trust_region": "off", "weights": "uniform", **changes})


def test_false_is_an_unquoted_off_of_yaml_and_true_is_refused():
    assert TrustRegion(kind=False).kind == "off"
    with pytest.raises(ValidationError, match="kind"):
        TrustRegion(kind=True)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_influence_is_the_derivative_of_the_target_by_each_reference(aggregate):
    """Central differences of 1e−5 nats at references a nat apart, with uneven weights."""
    random = np.random.default_rng(8)
    logps, weights = random.normal(-8, 1, (5, 3)), random.dirichlet([1, 2, 3], 5)
    found, step = influence(aggregate, logps, weights), 1e-5
    for k in range(3):
        moved = step * np.eye(3)[k]
        rise = AGGREGATES[aggregate](logps + moved, weights) - AGGREGATES[aggregate](logps - moved, weights)
        np.testing.assert_allclose(found[:, k], rise / (2 * step), atol=1e-8)
    assert np.ptp(found) > 0.05


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([0.5, 0.5 + 0.9e-6], False),
        ([0.5, 0.5 - 0.9e-6], False),
        ([0.5, 0.5 + 1.1e-6], True),
        ([0.5, 0.5 - 1.1e-6], True),
        ([0.1, 0.3], True),
    ],
)
def test_weights_whose_sum_is_off_by_more_than_a_millionth_are_reported(weights, told):
    assert bool(compute_targets(*SIDES, *settings(weights=weights)).notices) == told


@pytest.mark.parametrize("side", [0, 1])
def test_float32_sums_are_reckoned_with_in_float64(side):
    """2,000.1 nats is not a float32: bands and aggregates computed in float32 would be off by 1e−4."""
    random = np.random.default_rng(2)
    sides = [random.normal(-2000.1, 30, (6, 3)).astype(np.float32) for _ in range(2)]
    names = ["a", "b", "c"]
    exact = compute_targets(*(one.astype(np.float64) for one in sides), *settings(names, trust_region="adaptive"))
    mixed = [one.astype(np.float64) if at != side else one for at, one in enumerate(sides)]
    found = compute_targets(*mixed, *settings(names, trust_region="adaptive"))
    for name in ("clipped_chosen", "clipped_rejected", "target_chosen", "target_rejected"):
        assert getattr(found, name).dtype == np.float64
        np.testing.assert_array_equal(getattr(found, name), getattr(exact, name))


@pytest.mark.parametrize("side", [0, 1])
def test_a_log_prob_that_is_not_finite_names_its_side(side):
    sides = [np.full((2, 2), -1.0), np.full((2, 2), -2.0)]
    sides[side][0, 0] = np.nan
    with pytest.raises(RunError, match=f"1 of 2 {('chosen', 'rejected')[side]} completions"):
        compute_targets(*sides, *settings())


def test_units_are_counts_in_float64_finite_and_above_0():
    whole = compute_targets(*SIDES, *settings(normalize="token"), units_chosen=[5], units_rejected=[7]).loss_inputs()
    assert whole.chosen_units.dtype == whole.rejected_units.dtype == np.float64
    with pytest.raises(ValueError, match="expected units_chosen and units_rejected"):
        compute_targets(*SIDES, *settings(normalize="token"), units_chosen=[5])
    for units in ([np.inf], [-1.0], [0.0]):
        with pytest.raises(ValueError, match="finite counts above 0"):
            compute_targets(*SIDES, *settings(normalize="token"), units_chosen=[5], units_rejected=units)


def test_without_held_out_weights_the_message_says_none():
    with pytest.raises(ValueError, match="held-out pairs: none, expected"):
        compute_targets(*SIDES, *settings(weights="validation-accuracy"))


@pytest.mark.parametrize(
    ("rejected", "tie"),
    [
        (-0.9e-6, True),  # within a millionth of a nat
        (-1.3e-6, False),
        (-5000.00049, True),  # within 1e−6 + 1e−7 of the sum: 5.01e−4
        (-5000.00052, False),
    ],
)
def test_a_tie_is_a_difference_below_float32_rounding(rejected, tie):
    chosen = 0.0 if rejected > -1 else -5000.0
    report = compute_targets([[chosen, -1.0]], [[rejected, -2.0]], *settings()).diagnostics
    assert report["refs/base/ties"] == tie
    assert report["refs/base/accuracy"] == (0.5 if tie else 1)


def test_half_a_nat_is_enough_to_rank_rightly_or_wrongly():
    report = compute_targets([[-5.5, -5.0]], [[-5.0, -5.5]], *settings()).diagnostics
    assert (report["refs/base/accuracy"], report["refs/other/accuracy"]) == (0, 1)


@pytest.mark.parametrize("trust_region", ["off", "fixed"])
def test_a_pair_ranked_wrongly_before_and_after_clipping_is_no_flip(trust_region):
    """Anchor −100 and −90; bands of 20%: the other reference's (−95, −92) lies in both, Δ = −3."""
    method = settings(trust_region=trust_region, epsilon=0.2)
    report = compute_targets([[-100.0, -95.0]], [[-90.0, -92.0]], *method).diagnostics
    assert (report["refs/base/sign_flips"], report["refs/other/sign_flips"]) == (0, 0)


def test_targets_are_not_step_scoped_by_default():
    """By default a pair has a single π̃."""
    one = np.full((2, 1), -3.0)
    targets = Targets(one, one, one, one[:, 0], one[:, 0] - 1, {}, (), False, None, None)
    assert targets.loss_inputs().reference_rejected.tolist() == [[-4.0], [-4.0]]
    assert targets.adaptive is None


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_a_pair_whose_references_are_all_certain_shares_the_width_evenly(epsilon):
    """All log-probs are 0: |b_w| + |b_l| = 0 gives no shares, so each side gets half of the width."""
    zeros = np.zeros((2, 2))
    for width in band_widths(zeros, zeros, "adaptive", epsilon):
        np.testing.assert_array_equal(width, [epsilon / 2] * 2)


def test_above_zero_the_bounds_of_a_band_swap_and_the_lower_one_applies():
    """Anchor 1e−7, ε = 0.5: the ends are 1.5e−7 and 0.5e−7. numpy uses the second one if they cross."""
    clipped, _ = clip_to_anchor(np.array([[1e-7, -1.0]]), np.array([[-1.0, -1.0]]), "fixed", 0.5)
    assert clipped[0].tolist() == [1e-7, 0.5e-7]


def test_temperature_1_and_floor_0_change_no_bit():
    weights = np.random.default_rng(3).dirichlet(np.ones(7), 50)
    assert np.array_equal(temper(weights, 1.0), weights)
    assert np.array_equal(lift(weights, 0.0), weights)
    assert not np.array_equal((weights / weights.max(axis=1, keepdims=True)) ** 1.0, weights)


def test_at_a_low_temperature_no_pair_underflows_beside_another():
    """0.5 beside 1 in another row: (0.5/1)^10000 would be 0."""
    assert temper(np.array([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]]), 1e-4).tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("settings_class", "key", "allowed", "refused"),
    [
        (TrustRegion, "epsilon", 1.0, 1.01),
        (WeightsOptions, "floor", 0.999, 1.0),
        (WeightsOptions, "window", 1, 0),
        (WeightsOptions, "pairs", 1, 0),
        (WeightsOptions, "every", 1, 0),
    ],
)
def test_an_option_may_be_at_its_bound_and_not_beyond(settings_class, key, allowed, refused):
    assert getattr(settings_class(**{key: allowed}), key) == allowed
    with pytest.raises(ValidationError, match=key):
        settings_class(**{key: refused})


def test_numbers_whose_sum_is_infinite_are_refused_as_weights():
    with pytest.raises(UserError, match="expected finite numbers"):
        check_target(*settings(weights=[1e308, 1e308]))


@pytest.mark.parametrize("weights", ["validation-accuracy", "validation-discrimination"])
def test_one_reference_needs_no_third_split(weights):
    found = compute_targets([[-10.0]], [[-11.0]], *settings(["base"], weights=weights))
    assert found.weights.tolist() == [[1.0]]
