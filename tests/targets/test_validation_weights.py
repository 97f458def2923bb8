"""Weights from a third split: by hand, and independent of the training pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_methods import settings_of

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.targets.compute import compute_targets
from mrpo_pipeline.targets.validation_weights import validation_weights

VDW, VAW = "validation-discrimination", "validation-accuracy"

# Δ of three held-out pairs and two references: base (2, −1, 1), other (−6, 0, 6).
CHOSEN = np.array([[-10.0, -20.0], [-10.0, -20.0], [-10.0, -20.0]])
REJECTED = CHOSEN - np.array([[2.0, -6.0], [-1.0, 0.0], [1.0, 6.0]])


def kinds(weights, **changes):
    return settings_of(**{"reference_names": ["base", "other"], "weights": weights, **changes})


def test_discrimination_by_hand():
    """Σ|Δ|: base 2 + 1 + 1 = 4, other 6 + 0 + 6 = 12: 4/16 and 12/16 (arXiv 2512.10040)."""
    result = validation_weights(CHOSEN, REJECTED, *kinds(VDW))
    np.testing.assert_array_equal(result.row, [0.25, 0.75])
    assert result.pairs == 3
    assert "from the 3 pairs of the weights split: base 0.25, other 0.75" in result.notice


def test_accuracy_by_hand():
    """Δ > 0: base on the first and third pair, other on the third; its tie does not count: 2/3 and 1/3."""
    result = validation_weights(CHOSEN, REJECTED, *kinds(VAW))
    np.testing.assert_allclose(result.row, [2 / 3, 1 / 3], rtol=1e-15)


def test_the_unit_of_normalize_counts():
    """Over 1, 2 and 4 units (both sides alike): base 2/1 + 1/2 + 1/4 = 2.75, other 6 + 0 + 1.5 = 7.5."""
    units = np.array([1.0, 2.0, 4.0])
    result = validation_weights(
        CHOSEN, REJECTED, *kinds(VDW, normalize="byte"), units_chosen=units, units_rejected=units
    )
    np.testing.assert_allclose(result.row, [2.75 / 10.25, 7.5 / 10.25], rtol=1e-14)


def test_temperature_and_floor_are_applied_and_the_notice_has_the_final_weights():
    """T = ½ squares: 1/16 : 9/16 is 0.1 and 0.9; floor 0.2: 0.2 + 0.6·0.1 = 0.26, and 0.74."""
    settings = kinds(VDW, temperature=0.5, floor=0.2)
    held_out = validation_weights(CHOSEN, REJECTED, *settings)
    assert "base 0.26, other 0.74" in held_out.notice
    targets = compute_targets(-np.ones((2, 2)), -np.ones((2, 2)), *settings, held_out_weights=held_out.row)
    np.testing.assert_allclose(targets.weights, [[0.26, 0.74]] * 2, rtol=1e-14)


@pytest.mark.parametrize(
    ("weights", "deltas"), [(VDW, np.zeros((3, 2))), (VAW, -np.ones((3, 2))), (VAW, np.zeros((3, 2)))]
)
def test_without_a_signal_weights_are_uniform_and_the_notice_says_so(weights, deltas):
    result = validation_weights(CHOSEN, CHOSEN - deltas, *kinds(weights))
    np.testing.assert_array_equal(result.row, [0.5, 0.5])
    assert "is 0 for every reference on the 3 pairs" in result.notice
    assert "uniform" in result.notice


def test_a_log_prob_that_is_not_finite_names_its_reference():
    broken = CHOSEN.copy()
    broken[1, 1] = np.nan
    with pytest.raises(RunError, match="Reference other"):
        validation_weights(broken, REJECTED, *kinds(VDW))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([VDW, VAW]), st.integers(1, 9), st.integers(1, 4))
def test_the_row_is_the_same_for_every_pair_and_does_not_know_them(seed, weights, held_out, references):
    random = np.random.default_rng(seed)
    settings = settings_of(reference_names=[f"r{k}" for k in range(references)], weights=weights)
    sides = random.normal(-50, 20, (2, held_out, references))
    row = validation_weights(*sides, *settings).row
    assert row.shape == (references,)
    assert row.sum() == pytest.approx(1)
    assert np.all(row >= 0)
    for pairs in (1, 4):
        targets = compute_targets(*random.normal(-50, 20, (2, pairs, references)), *settings, held_out_weights=row)
        np.testing.assert_allclose(targets.weights, np.tile(row, (pairs, 1)), rtol=1e-14)
    order = random.permutation(held_out)
    np.testing.assert_allclose(validation_weights(sides[0][order], sides[1][order], *settings).row, row, rtol=1e-12)


def test_without_the_held_out_row_there_are_no_targets():
    with pytest.raises(ValueError, match="weights from held-out pairs: none"):
        compute_targets(CHOSEN, REJECTED, *kinds(VDW))
    with pytest.raises(ValueError, match=r"\(3,\), expected \(2,\)"):
        compute_targets(CHOSEN, REJECTED, *kinds(VAW), held_out_weights=np.ones(3) / 3)


@pytest.mark.parametrize("weights", [VDW, VAW])
def test_no_held_out_pair_is_refused(weights):
    with pytest.raises(ValueError, match="no held-out pair"):
        validation_weights(np.empty((0, 2)), np.empty((0, 2)), *kinds(weights))


def test_each_side_has_units_of_its_own():
    """Per unit: base −10/2 + 10/5 = −3, other −20/2 + 10/5 = −8: |Δ| 3 and 8."""
    settings = kinds(VDW, normalize="token")
    result = validation_weights([[-10.0, -20.0]], [[-10.0, -10.0]], *settings, units_chosen=[2.0], units_rejected=[5.0])
    np.testing.assert_allclose(result.row, [3 / 11, 8 / 11], rtol=1e-14)


@pytest.mark.parametrize(
    ("weights", "deltas", "said"),
    [
        (VDW, [[0.0, 0.0], [-0.5, 0.0]], False),  # one wrong ranking is a signal to VDW
        (VDW, [[0.0, 0.0], [0.5, 0.0]], False),
        (VAW, [[0.0, 0.0], [0.5, 0.0]], False),
        (VAW, [[0.0, 0.0], [-0.5, 0.0]], True),
    ],
)
def test_one_pair_with_a_signal_is_enough(weights, deltas, said):
    result = validation_weights(CHOSEN[:2], CHOSEN[:2] - np.array(deltas), *kinds(weights))
    assert ("so they are uniform" in result.notice) == said


def test_the_notice_tells_of_the_row_that_is_used():
    settings = kinds(VDW)
    result = validation_weights([[-1.0, -1.0]], [[-2.0, -4.0]], *settings)
    assert result.notice == f"Weights by {VDW}, from the 1 pairs of the weights split: base 0.25, other 0.75."


def test_a_signal_of_less_than_a_nat_in_all_counts_as_well():
    """Δ = (0.1, −0.3): 1/4 and 3/4."""
    result = validation_weights([[-1.0, -1.0]], [[-1.1, -0.7]], *kinds(VDW))
    np.testing.assert_allclose(result.row, [0.25, 0.75], rtol=1e-12)
