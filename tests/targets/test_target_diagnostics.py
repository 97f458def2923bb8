"""The diagnostics that show which reference decides."""

import numpy as np
import pytest
from tiny_methods import settings_of

from mrpo_pipeline.targets.compute import compute_targets


def diagnostics(chosen, rejected, names=("base", "other"), **changes):
    settings = settings_of(
        reference_names=names, **{"weights": "uniform", "trust_region": "off", "aggregate": "harmonic", **changes}
    )
    return compute_targets(chosen, rejected, *settings).diagnostics


def test_effective_k_is_one_where_one_reference_decides_whatever_the_weights():
    """50 nats apart: ρ = (1, e^−50), 1/Σρ² = 1; from α alone it would be 2."""
    report = diagnostics([[-100.0, -50.0]], [[-120.0, -70.0]])
    assert report["refs/effective_k"] == pytest.approx(1, abs=1e-12)
    assert report["refs/base/argmin_share"] == 1
    assert report["refs/other/argmin_share"] == 0


def test_effective_k_by_hand():
    """α = ½ each. Chosen π = (1/2, 1/4): ρ ∝ (2, 4) = (1/3, 2/3), 1/Σρ² = 9/5. Rejected equal: 2. Mean 1.9."""
    report = diagnostics([np.log([1 / 2, 1 / 4])], [np.log([1 / 4, 1 / 4])])
    assert report["refs/effective_k"] == pytest.approx(1.9, abs=1e-12)
    assert report["refs/base/argmin_share"] == 0.25  # one half for the tie on the rejected side
    assert report["refs/other/argmin_share"] == 0.75


def test_effective_k_follows_the_aggregate():
    """π = (1/2, 1/4), α = ½ each. arithmetic: ρ ∝ (2, 1), 1/Σρ² = 9/5; geometric: ρ = α, 2."""
    side = [np.log([1 / 2, 1 / 4])]
    assert diagnostics(side, side, aggregate="arithmetic")["refs/effective_k"] == pytest.approx(1.8, abs=1e-12)
    assert diagnostics(side, side, aggregate="geometric")["refs/effective_k"] == pytest.approx(2, abs=1e-12)
    report = diagnostics([np.log([1 / 2, 1 / 4])], side, aggregate="arithmetic", weights=[0.2, 0.8])
    assert report["refs/effective_k"] == pytest.approx(1.8, abs=1e-12)  # ρ ∝ (0.2·2, 0.8·1) = (1/3, 2/3)


def test_effective_k_of_the_official_code_has_its_weights_swapped():
    """π = (1/2, 1/4), α = (1/5, 4/5), swapped (4/5, 1/5): ρ ∝ (4/5·2, 1/5·4) = (2/3, 1/3): 9/5; unswapped 1.22."""
    side = [np.log([1 / 2, 1 / 4])]
    report = diagnostics(side, side, weights=[0.2, 0.8], compatibility="official-code")
    assert report["refs/effective_k"] == pytest.approx(1.8, abs=1e-12)
    assert report["refs/base/weight"] == pytest.approx(0.2)


def test_clip_rate_counts_completions_and_never_the_anchor():
    """Band [−110, −90] on four completions: −130 and −80 are clipped, −95 and −100 are not."""
    report = diagnostics(
        [[-100.0, -130.0], [-100.0, -95.0]], [[-100.0, -80.0], [-100.0, -100.0]], trust_region="fixed", epsilon=0.1
    )
    assert report["refs/other/clip_rate"] == 0.5
    assert report["refs/base/clip_rate"] == 0


def test_argmin_share_is_of_the_clipped_log_probs():
    """Unclipped the second reference is the smallest everywhere; clipped to the anchor (ε = 0) both are."""
    report = diagnostics([[-100.0, -130.0]], [[-100.0, -130.0]], trust_region="fixed", epsilon=0.0)
    assert report["refs/base/argmin_share"] == 0.5


def test_sign_flips_count_pairs_whose_preference_clipping_turned_round():
    """The anchor prefers the chosen side (−100, −120); bands of 5%: [−105, −95] and [−126, −114].

    First pair: the other reference (−200, −150), Δ = −50, is clipped to (−105, −126), Δ = 21: a flip.
    Second: (−150, −200), Δ = 50 → (−105, −126), Δ = 21: none. Third: (−100, −120), unclipped.
    """
    report = diagnostics(
        [[-100.0, -200.0], [-100.0, -150.0], [-100.0, -100.0]],
        [[-120.0, -150.0], [-120.0, -200.0], [-120.0, -120.0]],
        trust_region="fixed",
        epsilon=0.05,
    )
    assert report["refs/other/sign_flips"] == pytest.approx(1 / 3)
    assert report["refs/base/sign_flips"] == 0


def test_a_margin_clipped_to_0_is_not_a_sign_flip():
    report = diagnostics([[-100.0, -150.0]], [[-100.0, -200.0]], trust_region="fixed", epsilon=0.1)
    assert report["refs/other/sign_flips"] == 0


def test_accuracy_counts_a_tie_as_one_half_and_ties_are_reported():
    """Δ of the second reference: 1, −1, 0, 1e−7 (within the float32 of the sums): 1 + 0 + ½ + ½ of 4."""
    chosen = [[-5.0, -9.0], [-5.0, -11.0], [-5.0, -10.0], [-5.0, -10.0]]
    rejected = [[-6.0, -10.0], [-6.0, -10.0], [-6.0, -10.0], [-6.0, -10.0000001]]
    report = diagnostics(chosen, rejected)
    assert report["refs/other/accuracy"] == 0.5
    assert report["refs/other/ties"] == 0.5
    assert report["refs/base/accuracy"] == 1
    assert report["refs/base/ties"] == 0


def test_accuracy_is_of_the_unclipped_log_probs():
    report = diagnostics([[-100.0, -200.0]], [[-120.0, -150.0]], trust_region="fixed", epsilon=0.05)
    assert report["refs/other/accuracy"] == 0


def test_weight_is_the_mean_over_pairs():
    """Δ = (1, 3) and (1, 1): α of the second is 3/4 and 1/2."""
    report = diagnostics([[-10.0, -10.0], [-10.0, -10.0]], [[-11.0, -13.0], [-11.0, -11.0]], weights="adaptive")
    assert report["refs/other/weight"] == 0.625
    assert report["refs/base/weight"] == 0.375


def test_every_reference_is_reported_under_its_name():
    report = diagnostics([[-1.0, -2.0, -3.0]], [[-2.0, -3.0, -4.0]], names=("a", "b", "c"))
    keys = {"weight", "argmin_share", "clip_rate", "sign_flips", "accuracy", "ties"}
    assert set(report) == {"refs/effective_k", *(f"refs/{name}/{key}" for name in "abc" for key in keys)}
    assert all(isinstance(value, float) for value in report.values())
