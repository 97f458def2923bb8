"""Intervals of a mean over pairs and seeds: by hand, and with a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mrpo_pipeline.evaluation.intervals import mean_known, seed_freedom
from mrpo_pipeline.evaluation.multiple_testing import holm
from mrpo_pipeline.evaluation.power import pairs_needed, seeds_needed
from mrpo_pipeline.evaluation.simulation import World, draw


def test_the_variance_components_of_three_pairs_and_two_seeds_by_hand() -> None:
    values = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    # Mean 1/2; pairs' means ½, 0, 1; seeds' means 2/3, 1/3.
    # From pairs: 3/2 · (0² + ½² + ½²) / 3² = 1/12, and 1/9 for the next pair that might differ.
    # From seeds: variance of (2/3, 1/3) is 1/18, over 2 seeds 1/36.
    # Residual d_ij − pair − seed + mean: ±1/3 (pair 1), ∓1/6 (pairs 2 and 3): squares 2/9 + 4/36 = 1/3;
    # over (3−1)(2−1), times 3/(9·2): 1/36.
    known = mean_known(values, np.arange(3))
    assert known.mean == pytest.approx(0.5)
    lasting = 1 / 12 + 1 / 9 - 1 / 36
    assert known.pair_variance == pytest.approx(lasting)
    assert known.rest_variance == pytest.approx(1 / 36)
    assert known.seed_variance == pytest.approx(0.0)
    assert known.error == pytest.approx(np.sqrt(lasting + 1 / 36))
    share = (1 / 36) / (lasting + 1 / 36)
    freedom = 1 / (1 / seed_freedom(share, 1) + (1 - share) ** 2 / 2)
    assert known.freedom == pytest.approx(freedom)
    reach = stats.t.ppf(0.975, freedom) * known.error
    assert (known.low, known.high) == pytest.approx((max(0.5 - reach, -1), min(0.5 + reach, 1)))
    assert known.p == pytest.approx(2 * stats.t.sf(0.5 / known.error, freedom))


def test_figures_without_bounds_get_the_plain_interval_of_a_mean() -> None:
    nats = np.array([[3.0, 5.0], [-1.0, 2.0], [4.0, 7.0], [9.0, 6.0]])
    known = mean_known(nats[:, :1], np.arange(4), shares=False)
    error = stats.sem(nats[:, 0])
    assert (known.mean, known.error) == (pytest.approx(3.75), pytest.approx(error))
    assert known.high - known.mean == pytest.approx(stats.t.ppf(0.975, 3) * error) and known.high > 1 > known.low
    # From pairs, seeds and the residual, with nothing added: in another unit, the interval is the same in that unit.
    both, tenth = (mean_known(nats * unit, np.arange(4), shares=False) for unit in (1, 0.1))
    assert (tenth.low, tenth.high, tenth.p) == pytest.approx((both.low / 10, both.high / 10, both.p))
    still = mean_known(np.zeros((4, 2)), np.arange(4), shares=False)
    assert (still.mean, still.low, still.high, still.p) == (0, 0, 0, 1)
    alone = mean_known(nats[:1], np.zeros(1, dtype=np.int64), shares=False)
    assert (alone.low, alone.high) == (-np.inf, np.inf)


def test_one_seed_gives_the_paired_interval_over_pairs_alone() -> None:
    difference = np.array([1.0] * 12 + [-1.0] * 4 + [0.0] * 84)
    known = mean_known(difference[:, None], np.arange(100))
    error = np.sqrt(difference.var(ddof=1) / 100 + 1 / 100**2)
    assert known.error == pytest.approx(error)
    assert known.high - known.mean == pytest.approx(stats.t.ppf(0.975, 99) * error)
    assert known.seed_variance is None and known.sd_seeds is None


def test_copies_of_a_prompts_pair_tell_nothing_new() -> None:
    random = np.random.default_rng(0)
    values = random.integers(-1, 2, size=(40, 3)).astype(float)
    once = mean_known(values, np.arange(40))
    thrice = mean_known(np.repeat(values, 3, axis=0), np.repeat(np.arange(40), 3))
    assert thrice.mean == pytest.approx(once.mean)
    assert (thrice.error, thrice.low) == pytest.approx((once.error, once.low))
    apart = mean_known(np.repeat(values, 3, axis=0), np.arange(120))
    assert apart.error < 0.75 * once.error


def test_pairs_that_never_differ_still_leave_an_interval() -> None:
    known = mean_known(np.zeros((200, 3)), np.arange(200))
    assert known.mean == 0 and known.p == pytest.approx(1.0)
    assert 0.005 < known.high == -known.low < 0.02


def test_seeds_that_differ_widen_what_pairs_alone_would_say() -> None:
    random = np.random.default_rng(1)
    pairs = random.choice([-1.0, 0.0, 1.0], p=[0.05, 0.85, 0.1], size=500)[:, None]
    alike = mean_known(np.tile(pairs, 3), np.arange(500))
    moved = np.tile(pairs, 3)
    moved[:60, 1], moved[:60, 2] = 1.0, -1.0
    assert mean_known(moved, np.arange(500)).error > 2 * alike.error


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        mean_known(np.zeros((3, 2)), np.arange(4))
    with pytest.raises(ValueError, match="expected"):
        mean_known(np.zeros((0, 2)), np.arange(0))


def test_one_prompt_tells_nothing() -> None:
    known = mean_known(np.ones((5, 3)), np.zeros(5, dtype=np.int64))
    assert (known.low, known.high, known.p) == (-1.0, 1.0, 1.0)


def test_holm_by_hand() -> None:
    # Sorted: .01 · 4, .02 · 3, .04 · 2, .05 · 1, made non-decreasing.
    assert holm([0.04, 0.01, 0.05, 0.02]) == pytest.approx([0.08, 0.04, 0.08, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_with_as_many_pairs_as_were_asked_for_the_difference_is_seen_with_the_power_promised() -> None:
    random = np.random.default_rng(2)
    world, difference = World("", prompts=400, seed_spread=0.002, own_pairs=0.2, own_runs=0.2), 0.03
    needed = []
    for _ in range(40):
        drawn = draw(world, (0.0, difference), 5, random)
        known = mean_known(drawn.outcomes[1] - drawn.outcomes[0], drawn.clusters)
        needed.append(pairs_needed(known, difference=difference))
    assert all(count is not None for count in needed)
    larger = World("", prompts=400 + round(float(np.median(needed))), seed_spread=0.002, own_pairs=0.2, own_runs=0.2)
    seen = 0
    for _ in range(300):
        drawn = draw(larger, (0.0, difference), 5, random)
        known = mean_known(drawn.outcomes[1] - drawn.outcomes[0], drawn.clusters)
        seen += known.p < 0.05 and known.mean > 0
    assert 0.68 < seen / 300 < 0.95


def test_where_seeds_differ_too_much_no_number_of_pairs_would_do_and_more_seeds_are_named() -> None:
    random = np.random.default_rng(3)
    drawn = draw(World("", prompts=2000, seed_spread=0.03), (0.0, 0.0), 4, random)
    known = mean_known(drawn.outcomes[1] - drawn.outcomes[0], drawn.clusters)
    assert pairs_needed(known) is None
    seeds = seeds_needed(known)
    assert seeds is not None and seeds > 4
    assert pairs_needed(known, seeds=seeds) is not None
    assert pairs_needed(known, seeds=seeds - 1) is None


def test_with_one_seed_what_would_be_needed_cannot_be_told() -> None:
    known = mean_known(np.ones((50, 1)), np.arange(50))
    assert pairs_needed(known) is None and seeds_needed(known) is None


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("spread", [0.003, 0.03], ids=["seeds-alike", "seeds-apart"])
def test_the_interval_holds_the_true_difference_in_95_of_100_draws(seeds: int, spread: float) -> None:
    """With one seed the truth is that of the trained policies. benchmarks/bench_intervals.py does this in full."""
    random = np.random.default_rng(int(seeds * 1000 + spread * 1e4))
    world, trials, held = World("", prompts=300, pairs_each=2, seed_spread=spread), 1000, 0
    for _ in range(trials):
        drawn = draw(world, (0.0, 0.02), seeds, random)
        known = mean_known(drawn.outcomes[1] - drawn.outcomes[0], drawn.clusters)
        true = (drawn.true_of_seeds[:, 0] if seeds == 1 else drawn.true) @ [-1, 1]
        held += known.low <= true <= known.high
    low, high = stats.binomtest(held, trials).proportion_ci(0.99)
    assert low <= 0.95 <= high or 0.95 < held / trials < 0.98, held / trials


def test_the_simulation_draws_what_it_says() -> None:
    random = np.random.default_rng(4)
    world = World("", prompts=4000, seed_spread=0.03, ties=0.1)
    drawn = draw(world, (0.0, 0.05), 200, random)
    assert drawn.true == pytest.approx([0.9 * 0.7 + 0.05, 0.9 * 0.75 + 0.05])
    shares = drawn.outcomes.mean(axis=1)
    assert shares.mean(axis=1) == pytest.approx(drawn.true, abs=0.015)
    assert np.abs(shares - drawn.true_of_seeds).max() < 0.03
    assert drawn.true_of_seeds.std(axis=1) == pytest.approx([0.9 * 0.03] * 2, rel=0.25)
