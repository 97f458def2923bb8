"""The statistics by hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mrpo_pipeline.audit.reference_metrics import Scored, agreement, reference_metrics, share_with_interval
from mrpo_pipeline.audit.sampled_tokens import sample_pairs
from mrpo_pipeline.audit.statistics import (
    entropy,
    permutation_z,
    rank_correlation,
    ranks,
    share_explained,
)
from mrpo_pipeline.audit.weight_preview import under_mrpo, weights_by
from mrpo_pipeline.targets.settings import TargetSettings, TrustRegion


def test_without_clusters_the_interval_is_wilsons() -> None:
    """8 of 10: centre (0.8 + 1.9207/10) / (1 + 3.8415/10) = 0.7167, half-width 1.96/1.38415 √(0.016 + 0.0096) = 0.2266."""
    values = np.array([1.0] * 8 + [0.0] * 2)
    # The linearised variance has the factor C/(C − 1), so ten clusters count as nine pairs.
    share, low, high = share_with_interval(values, np.arange(10))
    worth, z = 9.0, 1.959963984540054
    centre = (0.8 + z**2 / (2 * worth)) / (1 + z**2 / worth)
    half = z / (1 + z**2 / worth) * math.sqrt(0.16 / worth + z**2 / (4 * worth**2))
    assert (share, low, high) == pytest.approx((0.8, centre - half, centre + half))


def test_repeated_pairs_of_a_prompt_do_not_narrow_the_interval() -> None:
    values, prompts = np.array([1.0, 0, 1, 1, 0, 1, 1]), np.arange(7)
    assert share_with_interval(np.repeat(values, 5), np.repeat(prompts, 5)) == pytest.approx(
        share_with_interval(values, prompts)
    )


def test_all_right_counts_prompts_not_pairs() -> None:
    """20 pairs of 4 prompts, all right: Wilson's for 4 of 4 is 4/(4 + 3.8415) = 0.510 to 1."""
    share, low, high = share_with_interval(np.ones(20), np.repeat(np.arange(4), 5))
    assert (share, high) == (1.0, 1.0) and low == pytest.approx(4 / (4 + 1.959963984540054**2))


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40), st.integers(1, 9))
@example([0.0] * 7, 7)
def test_the_share_is_in_its_interval(values: list[float], prompts: int) -> None:
    share, low, high = share_with_interval(np.array(values), np.arange(len(values)) % prompts)
    assert 0 <= low <= share <= high <= 1


def test_no_pair_has_no_share() -> None:
    assert all(math.isnan(value) for value in share_with_interval(np.empty(0), np.empty(0, dtype=np.int64)))


def test_ranks_share_ties() -> None:
    assert ranks(np.array([5.0, 1, 5, 0])).tolist() == [2.5, 1, 2.5, 0]


def test_rank_correlation_by_hand() -> None:
    """Ranks 0 1 2 3 against 0 2 1 3: 1 − 6·2/(4·15) = 0.8."""
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([1.0, 30, 20, 400])) == pytest.approx(0.8)
    assert math.isnan(rank_correlation(np.array([1, 2, 3]), np.array([7.0, 7, 7])))


def test_share_explained_by_hand() -> None:
    """1, 3 | 5, 7: total 20 about 4, within 2 + 2."""
    assert share_explained(np.array([1.0, 3, 5, 7]), np.array([0, 0, 1, 1])) == pytest.approx(16 / 20)


def test_entropy_by_hand() -> None:
    """Two of four kinds: ln 2, and (2 − 1)/(2·4) for their number."""
    assert entropy(np.array([1, 1, 2, 2])) == pytest.approx(math.log(2) + 1 / 8)


def test_permutation_z_of_shuffled_and_of_dependent_values() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 20, 2000)
    values = groups + rng.standard_normal(2000)
    place = np.arange(2000) % 10
    assert permutation_z(values, groups, place) > 20
    drawn = [permutation_z(rng.permutation(values), groups, place, seed=seed) for seed in range(8)]
    assert max(map(abs, drawn)) < 5
    assert math.isnan(permutation_z(values[:10], groups[:10], place[:10]))


def test_what_the_position_explains_is_not_dependence() -> None:
    """Both values and groups depend on the position, and on each other only through it."""
    rng = np.random.default_rng(2)
    place = np.arange(3000) % 6
    groups, values = place * 2 + rng.integers(0, 2, 3000), place + 0.1 * rng.standard_normal(3000)
    assert abs(permutation_z(values, groups, place)) < 5
    assert permutation_z(values, groups, np.zeros(3000, dtype=np.int64)) > 50


def scored() -> Scored:
    return Scored(
        names=["one", "two"],
        prompts=np.array([0, 0, 1, 2]),
        chosen=np.array([[-10.0, -5], [-20, -6], [-8, -8], [-6, -9]]),
        rejected=np.array([[-12.0, -4], [-18, -7], [-8, -2], [-9, -1]]),
        chosen_bytes=np.array([10, 10, 10, 20]),
        rejected_bytes=np.array([10, 20, 10, 10]),
        chosen_tokens=np.array([[4, 2], [4, 2], [4, 2], [4, 2]]),
        rejected_tokens=np.array([[4, 2], [4, 2], [4, 2], [4, 2]]),
    )


def test_metrics_of_a_reference_by_hand() -> None:
    one = reference_metrics(scored(), 0)
    assert one["nats_per_byte"] == pytest.approx({"chosen": 44 / 50, "rejected": 47 / 50})
    assert one["nats_per_token"] == pytest.approx({"chosen": 44 / 16, "rejected": 47 / 16})
    assert one["accuracy"]["share"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert one["ties"] == 0.25
    assert one["delta"]["mean"] == pytest.approx((2 - 2 + 0 + 3) / 4)
    assert one["delta"]["median_abs"] == 2.0
    assert [part["pairs"] for part in one["by_length"]] == [2, 2]  # 20 bytes, 30 bytes
    assert [part["delta_mean"] for part in one["by_length"]] == pytest.approx([1.0, 0.5])


def test_agreement_by_hand() -> None:
    """Right: 1 0 ½ 1 and 0 1 0 0, so the agreement is 0, 0, ½, 0."""
    (entry,) = agreement(scored())
    assert entry["same_ranking"] == pytest.approx(0.125)
    assert entry["delta"] == pytest.approx(np.corrcoef([2, -2, 0, 3], [-1, 1, -6, -8])[0, 1])


def test_weightings_by_hand() -> None:
    """|Δ| of one: 2 2 0 3, of two: 1 1 6 8."""
    found = weights_by(scored(), None)
    assert found["weights"]["adaptive"]["one"] == pytest.approx((2 / 3 + 2 / 3 + 0 + 3 / 11) / 4)
    assert found["weights"]["validation-discrimination"]["one"] == pytest.approx(7 / 23)
    assert found["weights"]["validation-accuracy"] == pytest.approx({"one": 2 / 3, "two": 1 / 3})
    held = weights_by(scored(), np.array([[1.0, 3.0]]))
    assert held["weights"]["validation-discrimination"]["one"] == pytest.approx(1 / 4)
    assert held["held_out_pairs"] == 1 and "weights split" in held["validation_on"]


def test_under_mrpo_the_smallest_decides() -> None:
    found = under_mrpo(scored(), TargetSettings(trust_region=TrustRegion(kind="fixed", epsilon=0.5)), None)
    # Of the eight completions, one is smaller in six, ties in one (−8), and is larger in one (−6 against −9).
    assert found["references"]["one"]["argmin_share"] == pytest.approx((6 + 0.5) / 8)
    assert 1 <= found["effective_k"] <= 2


def test_sampled_pairs_do_not_depend_on_the_order() -> None:
    frame = pl.DataFrame({"pair_id": [f"{at:032x}" for at in range(100)]})
    drawn = sample_pairs(frame, 10)["pair_id"].to_list()
    assert sorted(drawn) == sorted(sample_pairs(frame.reverse(), 10)["pair_id"].to_list()) and len(drawn) == 10
    assert sample_pairs(frame, 100).height == 100
