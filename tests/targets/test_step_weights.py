"""Weights that change from step to step: the window and its exclusion, Thompson's draws and counts, a step's targets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_methods import settings_of

from mrpo_pipeline.targets.compute import compute_targets
from mrpo_pipeline.targets.online_weights import Thompson, sliding_window, step_inputs


def rows(*first):
    """(N, 2) adaptive weights with the given first column."""
    return np.array([[share, 1 - share] for share in first])


def window_of(adaptive, seen, pairs, window, content=None):
    content = np.arange(len(adaptive)) if content is None else np.array(content)
    return sliding_window(adaptive, np.array(seen, dtype=np.int64), np.array(pairs), window, content)


def test_a_window_by_hand():
    """Seen 0, 1, 2 with base's share 0.1, 0.4, 0.7; a window of 2 takes 1 and 2: (0.4 + 0.7)/2 = 0.55."""
    found = window_of(rows(0.1, 0.4, 0.7, 0.9), [0, 1, 2], [3], 2)
    np.testing.assert_allclose(found, [[0.55, 0.45]], rtol=1e-15)


def test_a_pair_seen_before_is_not_in_its_own_window():
    """Seen 0, 1, 2; pair 2 again with a window of 2: the last two others are 0 and 1: 0.25. Pair 3 still has 1 and 2."""
    found = window_of(rows(0.1, 0.4, 0.7, 0.9), [0, 1, 2], [2, 3], 2)
    np.testing.assert_allclose(found[:, 0], [0.25, 0.55], rtol=1e-15)


def test_pairs_with_equal_content_are_the_same_pair():
    """Pairs 2 and 3 hold the same texts: 3 does not see 2 either."""
    found = window_of(rows(0.1, 0.4, 0.7, 0.7), [0, 1, 2], [3], 2, content=[0, 1, 2, 2])
    np.testing.assert_allclose(found[:, 0], [0.25], rtol=1e-15)


@pytest.mark.parametrize(("seen", "pairs"), [([], [0, 1]), ([0, 0, 0], [0])])
def test_weights_are_uniform_before_another_pair_was_seen(seen, pairs):
    np.testing.assert_array_equal(window_of(rows(0.1, 0.9), seen, pairs, 4), np.full((len(pairs), 2), 0.5))


def test_with_fewer_seen_than_the_window_holds_the_mean_is_over_those():
    np.testing.assert_allclose(window_of(rows(0.1, 0.3, 0.9), [0, 1], [2], 64), [[0.2, 0.8]], rtol=1e-15)


@settings(deadline=None)
@given(st.data())
def test_the_window_is_that_of_a_plain_walk_back_and_never_holds_the_pair_itself(data):
    count, references = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    adaptive = random.dirichlet(np.ones(references), count)
    content = random.integers(0, count, count)
    seen = random.integers(0, count, data.draw(st.integers(0, 40)))
    pairs = random.permutation(count)[: data.draw(st.integers(1, count))]
    window = data.draw(st.integers(1, 10))
    found = sliding_window(adaptive, seen, pairs, window, content)
    for row, pair in zip(found, pairs, strict=True):
        others = [other for other in reversed(seen) if content[other] != content[pair]][:window]
        expected = (
            np.mean([adaptive[other] for other in others], axis=0) if others else np.full(references, 1 / references)
        )
        np.testing.assert_allclose(row, expected, rtol=1e-12)
    # The weights of this pair do not depend on its own references.
    changed = adaptive.copy()
    changed[content == content[pairs[0]]] = random.dirichlet(np.ones(references))
    np.testing.assert_array_equal(sliding_window(changed, seen, pairs[:1], window, content), found[:1])


NAMES = ["a", "b", "c"]


@pytest.mark.parametrize(
    "changes",
    [
        *({"aggregate": aggregate} for aggregate in ("harmonic", "geometric", "arithmetic")),
        {"aggregate": "harmonic", "normalize": "token"},
        {"name": "multi-dpo"},
        {"name": "multi-dpo", "normalize": "byte"},
        {"temperature": 2.0, "floor": 0.1},
        {"trust_region": "off"},
    ],
    ids=str,
)
def test_targets_of_a_step_equal_those_of_the_same_fixed_weights(changes):
    random = np.random.default_rng(3)
    sides = random.normal(-60, 15, (2, 6, 3))
    units = {"units_chosen": random.integers(3, 30, 6), "units_rejected": random.integers(3, 30, 6)}
    alpha = [0.2, 0.0, 0.8]
    fixed = settings_of(**{"reference_names": NAMES, "weights": alpha, **changes})
    expected = compute_targets(*sides, *fixed, **units).loss_inputs()
    kind = settings_of(**{"reference_names": NAMES, "weights": "thompson", **changes})
    raw = compute_targets(*sides, *kind, **units).loss_inputs()
    assert raw.reference_chosen.shape == (6, 3)
    for weights in (np.array(alpha), np.tile(alpha, (6, 1))):
        found = step_inputs(
            raw.reference_chosen, raw.reference_rejected, weights, kind[0], raw.chosen_units, raw.rejected_units
        )
        for name in ("reference_chosen", "reference_rejected", "weights"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12, err_msg=name)
        for name in ("chosen_units", "rejected_units"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_diagnostics_of_step_scoped_weights_are_left_out():
    random = np.random.default_rng(4)
    sides = random.normal(-60, 15, (2, 6, 3))
    kind = settings_of(reference_names=NAMES, weights="sliding-window")
    targets = compute_targets(*sides, *kind)
    assert targets.step_scoped
    assert "refs/a/accuracy" in targets.diagnostics
    assert not [name for name in targets.diagnostics if name.endswith(("/weight", "effective_k"))]
    margins = np.abs(sides[0] - sides[1])
    np.testing.assert_allclose(targets.loss_inputs().weights, margins / margins.sum(axis=1, keepdims=True), rtol=1e-14)


def test_thompson_counts_a_rise_as_success_and_a_tie_or_fall_as_failure():
    arms = Thompson(2, seed=5)
    arms.accuracy = 0.5
    outcomes = []
    for step, accuracy in enumerate((0.6, 0.6, 0.4, 0.7)):
        arm = arms.draw(step)
        arms.judge(accuracy)
        outcomes.append((arm, accuracy))
    drawn = [arm for arm, _ in outcomes]
    for arm in (0, 1):
        assert arms.successes[arm] == sum(drawn[at] == arm for at in (0, 3))
        assert arms.failures[arm] == sum(drawn[at] == arm for at in (1, 2))


def test_thompson_posterior_means_by_hand():
    """Prior 1; base 3 successes and 1 failure: 4/6; other 0 and 2: 1/4. Divided by their sum 11/12: 8/11 and 3/11."""
    arms = Thompson(2, successes=[3, 0], failures=[1, 2])
    np.testing.assert_allclose(arms.posterior_means(), [8 / 11, 3 / 11], rtol=1e-14)
    np.testing.assert_array_equal(Thompson(4).posterior_means(), [0.25] * 4)


def test_thompson_draws_depend_only_on_seed_step_and_counts():
    one, other = Thompson(3, seed=1), Thompson(3, seed=1)
    other.draw(0)
    other.restore(one.state())
    assert [one.draw(step) for step in range(40)] == [other.draw(step) for step in range(40)]
    assert [Thompson(3, seed=2).draw(step) for step in range(40)] != [
        Thompson(3, seed=1).draw(step) for step in range(40)
    ]


def test_thompson_holds_a_reference_for_so_many_steps_and_judges_at_their_end():
    arms = Thompson(4, every=3, seed=0)
    drawn = [arms.draw(step) for step in range(30)]
    assert all(len(set(drawn[at : at + 3])) == 1 for at in range(0, 30, 3))
    assert len(set(drawn)) > 1
    assert [step for step in range(9) if arms.is_due(step)] == [2, 5, 8]


def test_thompson_draws_as_often_as_the_beta_distributions_have_it():
    """Beta(9, 1) nearly always exceeds Beta(1, 9); of two equal ones each wins half of 200 steps, ± 5.6 σ."""
    arms = Thompson(2, successes=[8, 0], failures=[0, 8])
    assert [arms.draw(step) for step in range(200)].count(0) >= 198
    even = Thompson(2, successes=[3, 3], failures=[3, 3])
    assert 60 < [even.draw(step) for step in range(200)].count(0) < 140


def test_judging_before_a_draw_and_a_measurement_is_refused():
    with pytest.raises(ValueError, match="expected both"):
        Thompson(2).judge(0.5)


def test_thompson_draws_from_a_generator_of_the_seed_and_step_that_no_version_may_change():
    """A run begun by an earlier version continues with the same draws."""
    arms = Thompson(3, seed=11, successes=[2, 0, 1], failures=[1, 3, 1], prior=0.5)
    expected = [
        np.random.default_rng([29703, 11, step]).beta([2.5, 0.5, 1.5], [1.5, 3.5, 1.5]).argmax() for step in range(30)
    ]
    assert [arms.draw(step) for step in range(30)] == expected
    assert len(set(expected)) > 1


def test_the_oldest_pair_counts_if_the_window_is_not_full_without_it():
    """Seen 1, 0, 0, 0; pair 0 with a window of 2 looks back over all four, and finds only pair 1."""
    found = window_of(rows(0.9, 0.2), [1, 0, 0, 0], [0], 2)
    np.testing.assert_allclose(found, [[0.2, 0.8]], rtol=1e-15)


def test_thompson_counts_by_hand():
    """From 0.5: 0.6 is a rise, 0.6 again is a tie, 0.4 is a fall: one success, two failures."""
    arms = Thompson(1)
    arms.accuracy = 0.5
    for step, accuracy in enumerate((0.6, 0.6, 0.4)):
        assert arms.draw(step) == 0
        arms.judge(accuracy)
    assert arms.state() == {"successes": [1], "failures": [2], "accuracy": 0.4, "arm": 0}


def test_thompson_draws_at_any_first_step_and_is_seeded_with_0():
    """A resumed run may begin between two draws."""
    assert Thompson(3, every=5).draw(7) == Thompson(3, every=5, seed=0).draw(7) in range(3)
    assert (Thompson(3).seed, Thompson(3).prior, Thompson(3).every) == (0, 1.0, 1)


@pytest.mark.parametrize(("arm", "accuracy"), [(None, 0.5), (1, None)])
def test_either_of_the_two_missing_is_refused(arm, accuracy):
    with pytest.raises(ValueError, match="expected both"):
        Thompson(2, arm=arm, accuracy=accuracy).judge(0.5)


def test_thompson_is_restored_completely_from_its_state():
    one = Thompson(2, every=4)
    one.accuracy = 0.25
    one.draw(0)
    one.judge(0.5)
    other = Thompson(2, every=4)
    other.restore(one.state())
    assert (other.accuracy, other.arm) == (0.5, one.arm)
    assert other.state() == one.state()
    assert all(type(count) is int for count in other.successes + other.failures)
