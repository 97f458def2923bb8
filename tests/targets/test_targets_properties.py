"""Properties of the targets for any log-probs."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_methods import settings_of

from mrpo_pipeline.targets.aggregate import arithmetic, geometric, harmonic
from mrpo_pipeline.targets.compute import compute_targets
from mrpo_pipeline.targets.weights import lift, temper

SLACK = 1e-9
AGGREGATES = ("harmonic", "geometric", "arithmetic")


@st.composite
def log_probs(draw, references=None, sides=2):
    """``sides`` arrays (N, K) of log-probs, from a certain token to a long sequence, with equal sides and ties."""
    shape = (draw(st.integers(1, 4)), references or draw(st.integers(1, 8)))
    scale = draw(st.sampled_from([1.0, 5.0, 500.0, 5000.0]))
    numbers = st.one_of(st.floats(-2.0, 0.0, allow_subnormal=False), st.sampled_from([-1.0, -0.5]))
    arrays = [draw(hnp.arrays(np.float64, shape, elements=numbers)) * scale for _ in range(sides)]
    if sides == 2 and draw(st.booleans()):
        arrays[1] = arrays[0].copy()
    return arrays


@st.composite
def log_probs_and_weights(draw):
    (logps,) = draw(log_probs(sides=1))
    raw = draw(hnp.arrays(np.float64, logps.shape, elements=st.one_of(st.just(0.0), st.floats(0.001, 1.0))))
    raw[np.arange(len(raw)), draw(st.integers(0, logps.shape[1] - 1))] += 0.5
    return logps, raw / raw.sum(axis=1, keepdims=True)


def make(references, **changes):
    return settings_of(reference_names=[f"r{k}" for k in range(references)], **changes)


@settings(deadline=None)
@given(log_probs_and_weights())
def test_harmonic_lies_between_the_smallest_and_the_smallest_raised_by_its_weight(case):
    logps, weights = case
    with np.errstate(divide="ignore"):
        upper = (logps - np.log(weights)).min(axis=1)
    result = harmonic(logps, weights)
    assert np.all(result >= logps.min(axis=1) - SLACK)
    assert np.all(result <= upper + SLACK)


@settings(deadline=None)
@given(log_probs_and_weights())
def test_harmonic_is_at_most_geometric_is_at_most_arithmetic(case):
    low, middle, high = (aggregate(*case) for aggregate in (harmonic, geometric, arithmetic))
    assert np.all(low <= middle + SLACK)
    assert np.all(middle <= high + SLACK)


@settings(deadline=None)
@given(log_probs_and_weights(), st.randoms())
def test_the_order_of_the_references_does_not_matter_to_an_aggregate(case, random):
    logps, weights = case
    order = list(range(logps.shape[1]))
    random.shuffle(order)
    for aggregate in (harmonic, geometric, arithmetic):
        np.testing.assert_allclose(
            aggregate(logps[:, order], weights[:, order]), aggregate(logps, weights), rtol=0, atol=SLACK
        )


@settings(deadline=None)
@given(log_probs(), st.sampled_from(AGGREGATES), st.randoms())
def test_the_references_after_the_anchor_may_change_places(sides, aggregate, random):
    """Weights and clipped log-probs move with their reference; the target is unchanged."""
    references = sides[0].shape[1]
    order = [0, *random.sample(range(1, references), references - 1)]
    here = compute_targets(*sides, *make(references, aggregate=aggregate))
    there = compute_targets(*(side[:, order] for side in sides), *make(references, aggregate=aggregate))
    np.testing.assert_allclose(there.weights, here.weights[:, order], rtol=0, atol=SLACK)
    np.testing.assert_allclose(there.clipped_chosen, here.clipped_chosen[:, order], rtol=0, atol=SLACK)
    np.testing.assert_allclose(there.target_chosen, here.target_chosen, rtol=0, atol=SLACK)
    np.testing.assert_allclose(there.target_rejected, here.target_rejected, rtol=0, atol=SLACK)


@settings(deadline=None)
@given(
    log_probs(),
    st.sampled_from(AGGREGATES),
    st.sampled_from(["uniform", "adaptive"]),
    st.sampled_from(["adaptive", "fixed", "off"]),
    st.sampled_from(["mrpo", "multi-dpo", "dpo"]),
)
def test_everything_is_finite_and_weights_are_shares_without_a_warning(sides, aggregate, weights, trust_region, name):
    method = make(sides[0].shape[1], name=name, aggregate=aggregate, weights=weights, trust_region=trust_region)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targets = compute_targets(*sides, *method)
        inputs = targets.loss_inputs()
    for numbers in (targets.target_chosen, targets.target_rejected, inputs.reference_chosen, targets.weights):
        assert np.all(np.isfinite(numbers))
    for alpha in (targets.weights, inputs.weights):
        assert np.all(alpha >= 0)
        np.testing.assert_allclose(alpha.sum(axis=1), 1, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(log_probs(), st.sampled_from(["adaptive", "fixed"]), st.floats(0, 1))
def test_clipping_stays_in_the_band_and_leaves_values_inside(sides, kind, epsilon):
    targets = compute_targets(*sides, *make(sides[0].shape[1], trust_region=kind, epsilon=epsilon))
    sizes = [np.abs(side.mean(axis=1)) for side in sides]
    for side, clipped, size in zip(sides, (targets.clipped_chosen, targets.clipped_rejected), sizes, strict=True):
        assert np.array_equal(clipped[:, 0], side[:, 0]), "the anchor is never clipped"
        # A pair whose log-probs are all 0 has no sizes to divide the width by; any division is valid.
        share = 1.0 if kind == "fixed" else size / np.maximum(sizes[0] + sizes[1], 1e-300)
        width = np.broadcast_to(epsilon * share, len(side))
        anchor = side[:, :1]
        low, high = anchor - width[:, None] * np.abs(anchor), anchor + width[:, None] * np.abs(anchor)
        assert np.all(clipped >= low - SLACK)
        assert np.all(clipped <= high + SLACK)
        inside = (side >= low + SLACK) & (side <= high - SLACK)
        assert np.array_equal(clipped[inside], side[inside])


@settings(deadline=None)
@given(log_probs(references=1), st.sampled_from(AGGREGATES), st.sampled_from(["uniform", "adaptive", [0.3]]))
def test_one_reference_is_its_own_target_bit_for_bit_whatever_the_method(sides, aggregate, weights):
    for method in (
        make(1, aggregate=aggregate, weights=weights, temperature=0.5, floor=0.3),
        make(1, name="multi-dpo", weights=weights),
        make(1, name="dpo"),
        make(1, aggregate="single:r0"),
    ):
        targets = compute_targets(*sides, *method)
        assert np.array_equal(targets.target_chosen, sides[0][:, 0])
        assert np.array_equal(targets.target_rejected, sides[1][:, 0])
        inputs = targets.loss_inputs()
        assert np.array_equal(inputs.reference_chosen, sides[0])
        assert np.array_equal(inputs.reference_rejected, sides[1])
        assert np.array_equal(inputs.weights, np.ones((len(sides[0]), 1)))


@settings(deadline=None)
@given(log_probs(references=3), st.integers(0, 2))
def test_a_single_reference_is_the_target_bit_for_bit_and_the_trust_region_ignored(sides, which):
    targets = compute_targets(*sides, *make(3, aggregate=f"single:r{which}", trust_region="fixed", epsilon=0.0))
    assert np.array_equal(targets.target_chosen, sides[0][:, which])
    assert np.array_equal(targets.clipped_rejected, sides[1])
    assert targets.weights.tolist() == [list(np.eye(3)[which])] * len(sides[0])
    assert targets.diagnostics["refs/effective_k"] == 1


@settings(deadline=None)
@given(log_probs(references=3), st.sampled_from(AGGREGATES), st.integers(0, 2))
def test_a_reference_of_weight_one_decides_alone_bit_for_bit(sides, aggregate, which):
    method = make(3, aggregate=aggregate, weights=list(np.eye(3)[which]), trust_region="off")
    assert np.array_equal(compute_targets(*sides, *method).target_chosen, sides[0][:, which])


@settings(deadline=None)
@given(log_probs(references=4), st.sampled_from(AGGREGATES))
def test_pairs_that_no_reference_tells_apart_get_uniform_weights_and_equal_targets(sides, aggregate):
    targets = compute_targets(sides[0], sides[0], *make(4, aggregate=aggregate))
    assert np.array_equal(targets.weights, np.full(sides[0].shape, 0.25))
    assert np.array_equal(targets.target_chosen, targets.target_rejected)


@settings(deadline=None)
@given(log_probs_and_weights(), st.floats(0.05, 20), st.floats(0, 1))
def test_temperature_and_floor_keep_order_zeros_and_sum(case, temperature, share):
    weights = case[1]
    floor = share / weights.shape[1]
    tempered = temper(weights, temperature)
    assert np.all(tempered[weights == 0] == 0)
    for result in (tempered, lift(tempered, floor)):
        np.testing.assert_allclose(result.sum(axis=1), 1, rtol=0, atol=1e-12)
        for row, start in zip(result, weights, strict=True):
            assert np.all(np.diff(row[np.argsort(start)]) >= -1e-12)
    assert np.all(lift(tempered, floor) >= floor)


def test_a_low_temperature_does_not_underflow():
    assert temper(np.array([[0.2, 0.3, 0.5]]), 1e-4).tolist() == [[0, 0, 1]]


@settings(deadline=None)
@given(log_probs(references=2), st.sampled_from([1.0, 8.0, 100.0]))
def test_dividing_every_side_by_the_same_power_of_two_scales_the_geometric_target(sides, unit):
    """One unit for all sides changes no weight and no relative band."""
    rows = len(sides[0])
    plain = compute_targets(*sides, *make(2, aggregate="geometric"))
    scaled = compute_targets(
        *sides,
        *make(2, aggregate="geometric", normalize="byte"),
        units_chosen=np.full(rows, unit),
        units_rejected=np.full(rows, unit),
    )
    np.testing.assert_allclose(scaled.target_chosen * unit, plain.target_chosen, rtol=1e-9, atol=SLACK)
    np.testing.assert_allclose(
        scaled.loss_inputs().reference_rejected, plain.loss_inputs().reference_rejected, rtol=1e-9, atol=SLACK
    )


@pytest.mark.parametrize("name", ["mrpo", "multi-dpo", "dpo"])
def test_no_pairs_give_empty_targets(name):
    targets = compute_targets(np.empty((0, 2)), np.empty((0, 2)), *make(2, name=name))
    assert targets.target_chosen.shape == (0,)
    assert targets.diagnostics == {}
