"""Targets against numbers worked by hand, step by step, in each docstring."""

import numpy as np
import pytest
from tiny_methods import settings_of

from mrpo_pipeline.targets.compute import compute_targets

TWO = ("base", "other")


def settings(names=TWO, **changes):
    return settings_of(reference_names=names, **{"trust_region": "off", "weights": "uniform", **changes})


def exactly(value):
    return pytest.approx(value, rel=0, abs=1e-12)


def test_harmonic_of_one_half_and_one_quarter_is_one_third():
    """π_1 = 1/2, π_2 = 1/4, α = 1/2 each: π̃ = 1 / (½·2 + ½·4) = 1/3. Rejected: 1/4 and 1/4 → 1/4."""
    targets = compute_targets([[np.log(1 / 2), np.log(1 / 4)]], [[np.log(1 / 4)] * 2], *settings())
    assert targets.target_chosen[0] == exactly(np.log(1 / 3))
    assert targets.target_rejected[0] == exactly(np.log(1 / 4))


def test_geometric_of_one_half_and_one_eighth_is_one_quarter():
    """(1/2)^½ · (1/8)^½ = (1/16)^½ = 1/4."""
    targets = compute_targets([[np.log(1 / 2), np.log(1 / 8)]], [[-1, -1]], *settings(aggregate="geometric"))
    assert targets.target_chosen[0] == exactly(np.log(1 / 4))


def test_arithmetic_of_one_half_and_one_quarter_is_three_eighths():
    """½·½ + ½·¼ = 3/8."""
    targets = compute_targets([[np.log(1 / 2), np.log(1 / 4)]], [[-1, -1]], *settings(aggregate="arithmetic"))
    assert targets.target_chosen[0] == exactly(np.log(3 / 8))


def test_each_weight_belongs_to_its_own_reference():
    """α = (¼, ¾), π = (1/2, 1/4): π̃ = 1 / (¼·2 + ¾·4) = 1/3.5 = 2/7; the other way round it would be 1 / 2.5 = 2/5."""
    targets = compute_targets([[np.log(1 / 2), np.log(1 / 4)]], [[-1, -1]], *settings(weights=[0.25, 0.75]))
    assert targets.target_chosen[0] == exactly(np.log(2 / 7))


def test_adaptive_weights_are_the_shares_of_the_absolute_margins():
    """Δ = (−10 + 11, −20 + 17) = (1, −3): |Δ| = (1, 3), α = (1/4, 3/4)."""
    targets = compute_targets([[-10.0, -20.0]], [[-11.0, -17.0]], *settings(weights="adaptive"))
    assert targets.weights.tolist() == [[0.25, 0.75]]


def test_adaptive_weights_add_nothing_to_small_margins():
    """Δ = (2⁻²⁰, 3·2⁻²⁰), about (1e−6, 3e−6): α = (1/4, 3/4); the authors' code would give (0.4, 0.6)."""
    targets = compute_targets([[0.0, 0.0]], [[-(2.0**-20), -3 * 2.0**-20]], *settings(weights="adaptive"))
    assert targets.weights.tolist() == [[0.25, 0.75]]


def test_adaptive_weights_look_at_the_log_probs_before_clipping():
    """ε = 0 clips the second reference to the anchor, where both Δ are 1; before it Δ = (1, 3), so α = (1/4, 3/4)."""
    targets = compute_targets(
        [[-10.0, -14.0]], [[-11.0, -17.0]], *settings(weights="adaptive", trust_region="fixed", epsilon=0.0)
    )
    assert targets.weights.tolist() == [[0.25, 0.75]]
    assert targets.clipped_chosen.tolist() == [[-10, -10]]


def test_fixed_trust_region_clips_at_both_bounds_and_leaves_values_inside():
    """Anchor −100, ε = 0.1: the band is [−110, −90]. −130 → −110, −60 → −90, −95 stays."""
    targets = compute_targets(
        [[-100.0, -130.0, -60.0, -95.0]],
        [[-100.0] * 4],
        *settings(("base", "low", "high", "near"), trust_region="fixed"),
    )
    assert targets.clipped_chosen[0] == exactly([-100, -110, -90, -95])


def test_an_anchor_just_above_zero_by_rounding_is_left_as_it_is():
    targets = compute_targets([[1e-7, -1.0]], [[-2.0, -1.0]], *settings(trust_region="fixed"))
    assert targets.clipped_chosen[0, 0] == 1e-7


def test_adaptive_trust_region_shares_its_width_by_the_mean_log_probs():
    """Chosen (−40, −80), rejected (−100, −260); b_w = −60, b_l = −180; ε_max = 0.4.

    ε_w = 0.4 · 60/240 = 0.1, band of the chosen side [−44, −36]: −80 → −44.
    ε_l = 0.4 − 0.1 = 0.3, band of the rejected side [−130, −70]: −260 → −130.
    """
    targets = compute_targets([[-40.0, -80.0]], [[-100.0, -260.0]], *settings(trust_region="adaptive", epsilon=0.4))
    assert targets.clipped_chosen[0] == exactly([-40, -44])
    assert targets.clipped_rejected[0] == exactly([-100, -130])


def test_adaptive_trust_region_takes_the_mean_over_all_three_references():
    """Chosen (−30, −60, −90): b_w = −60. Rejected (−60, −180, −300): b_l = −180. ε_max = 0.4 → ε_w = 0.1, ε_l = 0.3.

    Chosen band [−33, −27]: −60 → −33, −90 → −33. Rejected band [−78, −42]: −180 → −78, −300 → −78.
    """
    targets = compute_targets(
        [[-30.0, -60.0, -90.0]],
        [[-60.0, -180.0, -300.0]],
        *settings(("a", "b", "c"), epsilon=0.4, trust_region="adaptive"),
    )
    assert targets.clipped_chosen[0] == exactly([-30, -33, -33])
    assert targets.clipped_rejected[0] == exactly([-60, -78, -78])


def test_the_whole_path_of_mrpo_at_sequence_sums():
    """Adaptive weights, adaptive trust region (ε_max 0.1), harmonic; sums far apart, so that clipping and minimum have an effect.

    Chosen (−100, −140), rejected (−120, −240). Δ = (20, 100): α = (1/6, 5/6).
    b_w = −120, b_l = −180: ε_w = 0.1·120/300 = 0.04, ε_l = 0.06.
    Chosen band [−104, −96]: −140 → −104. Rejected band [−127.2, −112.8]: −240 → −127.2.
    log π̃(w) = −log(1/6·e^100 + 5/6·e^104) = −104 − log(5/6 + e^−4/6)
    log π̃(l) = −127.2 − log(5/6 + e^−7.2/6)
    """
    targets = compute_targets([[-100.0, -140.0]], [[-120.0, -240.0]], *settings_of(reference_names=TWO))
    assert targets.weights[0] == exactly([1 / 6, 5 / 6])
    assert targets.target_chosen[0] == exactly(-104 - np.log(5 / 6 + np.exp(-4) / 6))
    assert targets.target_rejected[0] == exactly(-127.2 - np.log(5 / 6 + np.exp(-7.2) / 6))


def test_official_code_gives_the_weight_of_the_second_reference_to_the_first():
    """π_1 = 1/2, π_2 = 1/4, α = 3/4 of the second: the code's π̃ = π_1·π_2 / (α·π_2 + (1−α)·π_1).

    = (1/8) / (3/16 + 1/8) = 2/5, where the formula gives 2/7. The weights are reported as the code names them.
    """
    targets = compute_targets(
        [[np.log(1 / 2), np.log(1 / 4)]], [[-1, -1]], *settings(weights=[0.25, 0.75], compatibility="official-code")
    )
    assert targets.target_chosen[0] == exactly(np.log(2 / 5))
    assert targets.weights.tolist() == [[0.25, 0.75]]


def test_official_code_adds_a_millionth_to_the_sum_of_the_margins():
    """Δ = (1e−6, 2e−6): α of the second = 2e−6 / (3e−6 + 1e−6) = 1/2, and 1 − 1/2 for the anchor."""
    targets = compute_targets(
        [[0.0, 0.0]], [[-1e-6, -2e-6]], *settings(weights="adaptive", compatibility="official-code")
    )
    assert targets.weights[0] == exactly([0.5, 0.5])


def test_official_code_gives_the_second_reference_no_weight_if_every_margin_is_0():
    """Δ = (0, 0): α of the second = 0 / 1e−6 = 0; the swap then leaves the second reference alone in π̃."""
    targets = compute_targets(
        [[-3.0, -5.0]], [[-3.0, -5.0]], *settings(weights="adaptive", compatibility="official-code")
    )
    assert targets.weights.tolist() == [[1, 0]]
    assert targets.target_chosen.tolist() == [-5]


def test_official_code_does_not_swap_the_weights_of_multi_dpo():
    """Multi-DPO's losses are weighted (1 − α, α), anchor first; ¼·(−4) + ¾·(−8) = −7 is reported."""
    targets = compute_targets(
        [[-4.0, -8.0]], [[-1, -1]], *settings(name="multi-dpo", weights=[0.25, 0.75], compatibility="official-code")
    )
    assert targets.loss_inputs().weights.tolist() == [[0.25, 0.75]]
    assert targets.target_chosen[0] == exactly(-7)


def test_multi_dpo_hands_the_loss_every_clipped_reference_and_reports_their_weighted_mean():
    """Anchor −100, ε = 0.1: −130 → −110. α = (1/4, 3/4): ¼·(−100) + ¾·(−110) = −107.5."""
    targets = compute_targets(
        [[-100.0, -130.0]], [[-100.0, -100.0]], *settings(name="multi-dpo", weights=[0.25, 0.75], trust_region="fixed")
    )
    inputs = targets.loss_inputs()
    assert inputs.reference_chosen[0] == exactly([-100, -110])
    assert inputs.reference_rejected[0] == exactly([-100, -100])
    assert inputs.weights.tolist() == [[0.25, 0.75]]
    assert targets.target_chosen[0] == exactly(-107.5)


def test_tokens_as_the_unit_change_weights_and_target_but_the_loss_gets_sums():
    """Chosen (−20, −40) of 10 tokens, rejected (−30, −30) of 20: per token (−2, −4) and (−1.5, −1.5).

    Δ = (−0.5, −2.5): α = (1/6, 5/6); as sums Δ would be (10, −10), α = (1/2, 1/2).
    Geometric: −2/6 − 20/6 = −11/3 per token; times 10 tokens: −110/3. Rejected: −1.5 per token, −30 as a sum.
    """
    targets = compute_targets(
        [[-20.0, -40.0]],
        [[-30.0, -30.0]],
        *settings(aggregate="geometric", weights="adaptive", normalize="token"),
        units_chosen=[10],
        units_rejected=[20],
    )
    assert targets.weights[0] == exactly([1 / 6, 5 / 6])
    assert targets.target_chosen[0] == exactly(-11 / 3)
    inputs = targets.loss_inputs()
    assert inputs.reference_chosen[0] == exactly([-110 / 3])
    assert inputs.reference_rejected[0] == exactly([-30])
    assert (inputs.chosen_units.tolist(), inputs.rejected_units.tolist()) == ([10], [20])


def test_temperature_takes_a_root_and_the_floor_is_mixed_in_after_it():
    """α = (1/5, 4/5), T = 2: √α ∝ (1, 2) → (1/3, 2/3). Floor 0.1: 0.1 + 0.8·(1/3, 2/3) = (11/30, 19/30)."""
    targets = compute_targets([[-1.0, -1.0]], [[-2, -2]], *settings(weights=[0.2, 0.8], temperature=2.0, floor=0.1))
    assert targets.weights[0] == exactly([11 / 30, 19 / 30])


def test_weights_that_do_not_sum_to_one_are_divided_by_their_sum_and_reported():
    """(2, 6) / 8 = (1/4, 3/4)."""
    targets = compute_targets([[-1.0, -1.0]], [[-2, -2]], *settings(weights=[2, 6]))
    assert targets.weights.tolist() == [[0.25, 0.75]]
    assert targets.notices == ("The weights given sum to 8, not 1; divided by their sum: base 0.25, other 0.75.",)
    assert compute_targets([[-1.0, -1.0]], [[-2, -2]], *settings(weights=[0.25, 0.75])).notices == ()
