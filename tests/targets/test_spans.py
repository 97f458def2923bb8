"""References mixed over spans: against a plain loop, exact where it must be, and the diagnostics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_methods import settings_of

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.targets.compute import compute_targets
from mrpo_pipeline.targets.settings import check_target
from mrpo_pipeline.targets.spans import PairSpans, SpanCounts, Spans, mix

Side = list[np.ndarray]  # the spans of each completion: (spans, K)


def names_of(count: int) -> list[str]:
    return [f"r{k}" for k in range(count)]


def some_side(random: np.random.Generator, pairs: int, references: int) -> Side:
    return [-random.gamma(0.7, 3, (random.integers(1, 9), references)) for _ in range(pairs)]


def as_spans(side: Side) -> Spans:
    return Spans(np.array([len(one) for one in side]), np.ascontiguousarray(np.concatenate(side).T))


def sums_of(side: Side) -> np.ndarray:
    return np.array([one.sum(axis=0) for one in side])


def targets_of(chosen: Side, rejected: Side, parts: int = 1, units: Any = None, **keys: Any) -> Any:
    names = names_of(chosen[0].shape[1])
    spans = [
        PairSpans(as_spans([chosen[i] for i in at]), as_spans([rejected[i] for i in at]))
        for at in np.array_split(np.arange(len(chosen)), parts)
    ]
    units = {} if units is None else {"units_chosen": units[0], "units_rejected": units[1]}
    method = settings_of(names, **{"aggregate_over": "span", "trust_region": "off", "weights": "uniform"} | keys)
    return compute_targets(sums_of(chosen), sums_of(rejected), *method, spans=spans, **units)


def slow_mixture(aggregate: str, spans: np.ndarray, alpha: np.ndarray, scale: np.ndarray) -> float:
    """Span by span and reference by reference, with the paper's formulas, for numbers that do not underflow."""
    total = []
    for span in spans:
        logps = [float(x) * float(f) for x, f in zip(span, scale, strict=True)]
        if aggregate == "harmonic":
            total.append(-math.log(math.fsum(a * math.exp(-x) for a, x in zip(alpha, logps, strict=True))))
        else:
            total.append(math.log(math.fsum(a * math.exp(x) for a, x in zip(alpha, logps, strict=True))))
    return math.fsum(total)


@pytest.mark.parametrize("references", [2, 3, 8])
@pytest.mark.parametrize("aggregate", ["harmonic", "arithmetic"])
@pytest.mark.parametrize("normalize", ["sum", "token"])
@pytest.mark.parametrize("region", ["off", "fixed", "adaptive"])
def test_log_pi_is_the_sum_over_spans_of_their_aggregates(references, aggregate, normalize, region):
    random = np.random.default_rng(references)
    chosen, rejected = some_side(random, 7, references), some_side(random, 7, references)
    units = (random.integers(2, 30, 7), random.integers(2, 30, 7)) if normalize == "token" else None
    keys = {"aggregate": aggregate, "normalize": normalize, "trust_region": region, "weights": "adaptive"}
    found = targets_of(chosen, rejected, parts=3, units=units, **keys)
    if region != "off":
        assert found.diagnostics["refs/r1/clip_rate"] > 0
    for side, sides in (("chosen", chosen), ("rejected", rejected)):
        unit = np.ones(7) if units is None else units[side == "rejected"]
        sums, clipped = sums_of(sides) / unit[:, None], getattr(found, f"clipped_{side}")
        expected = [
            slow_mixture(aggregate, spans, found.weights[n], clipped[n] / sums[n]) / unit[n]
            for n, spans in enumerate(sides)
        ]
        np.testing.assert_allclose(getattr(found, f"target_{side}"), expected, rtol=1e-12)
    over_completions = targets_of(chosen, rejected, units=units, **keys | {"aggregate_over": "completion"})
    assert not np.allclose(found.target_chosen, over_completions.target_chosen)
    np.testing.assert_array_equal(found.weights, over_completions.weights)
    np.testing.assert_array_equal(found.clipped_chosen, over_completions.clipped_chosen)


@settings(deadline=None)
@given(st.data())
def test_however_the_pairs_are_dealt_out_the_targets_are_the_same(data):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    pairs, references = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 4))
    chosen, rejected = some_side(random, pairs, references), some_side(random, pairs, references)
    whole = targets_of(chosen, rejected)
    parts = targets_of(chosen, rejected, parts=data.draw(st.integers(1, pairs)))
    np.testing.assert_array_equal(whole.target_chosen, parts.target_chosen)
    np.testing.assert_array_equal(whole.target_rejected, parts.target_rejected)
    assert whole.diagnostics == pytest.approx(parts.diagnostics, rel=1e-12)


@pytest.mark.parametrize("aggregate", ["harmonic", "arithmetic"])
@pytest.mark.parametrize("references", [1, 2, 3, 8])
def test_identical_references_give_themselves_to_the_last_bit(aggregate, references):
    random = np.random.default_rng(1)
    sides = [[np.tile(one, references) for one in some_side(random, 20, 1)] for _ in range(2)]
    weights = random.dirichlet(np.ones(references)).tolist()
    for region in ("off", "fixed"):
        found = targets_of(*sides, aggregate=aggregate, weights=weights, trust_region=region)
        np.testing.assert_array_equal(found.target_chosen, sums_of(sides[0])[:, 0])
        np.testing.assert_array_equal(found.target_rejected, sums_of(sides[1])[:, 0])


@pytest.mark.parametrize("aggregate", ["harmonic", "arithmetic"])
def test_weight_1_on_one_reference_is_that_reference_to_the_last_bit(aggregate):
    random = np.random.default_rng(2)
    sides = some_side(random, 20, 3), some_side(random, 20, 3)
    for at in range(3):
        found = targets_of(*sides, aggregate=aggregate, weights=np.eye(3)[at].tolist(), trust_region="fixed")
        np.testing.assert_array_equal(found.target_chosen, found.clipped_chosen[:, at])
        np.testing.assert_array_equal(found.target_rejected, found.clipped_rejected[:, at])


def test_geometric_is_the_same_over_spans_to_the_last_bit():
    random = np.random.default_rng(3)
    sides = some_side(random, 20, 3), some_side(random, 20, 3)
    keys = {"aggregate": "geometric", "weights": "adaptive", "trust_region": "adaptive"}
    over_spans = targets_of(*sides, **keys)
    over_completions = targets_of(*sides, **keys, aggregate_over="completion")
    np.testing.assert_array_equal(over_spans.target_chosen, over_completions.target_chosen)
    # It also equals the loop over spans, since the sum is linear.
    alpha, scale = over_spans.weights, over_spans.clipped_chosen / sums_of(sides[0])
    by_hand = [(one * scale[n] * alpha[n]).sum() for n, one in enumerate(sides[0])]
    np.testing.assert_allclose(over_spans.target_chosen, by_hand, rtol=1e-13)


def test_with_tokens_for_spans_arithmetic_is_the_mixture_of_next_token_distributions():
    """Two models over three tokens, each a table; the mixture's table is a distribution, and the target its log-prob."""
    random = np.random.default_rng(4)
    tables = random.dirichlet(np.ones(3), (2, 5))  # (K, positions, tokens)
    weights = np.array([0.3, 0.7])
    mixture = np.tensordot(weights, tables, axes=1)
    np.testing.assert_allclose(mixture.sum(axis=1), 1, rtol=1e-12)
    texts = random.integers(0, 3, (2, 4, 5))  # (sides, pairs, positions)
    sides = [
        [np.log([[tables[k, t, y] for k in range(2)] for t, y in enumerate(text)]) for text in side] for side in texts
    ]
    found = targets_of(*sides, aggregate="arithmetic", weights=weights.tolist())
    for side, targets in zip(texts, (found.target_chosen, found.target_rejected), strict=True):
        np.testing.assert_allclose(targets, [np.log(mixture[np.arange(5), text]).sum() for text in side], rtol=1e-13)


def test_spans_of_hundreds_of_nats_neither_underflow_nor_lose_their_difference():
    """−log(½e^{900} + ½e^{901}) = −901 − log ½(1 + e^{−1}); the mixture of −900 and −901 is −900 + log ½(1 + e^{−1})."""
    side = [np.array([[-900.0, -901.0], [-0.5, -0.5]])]
    apart = math.log((1 + math.exp(-1)) / 2)
    assert targets_of(side, side).target_chosen[0] == pytest.approx(-901.5 - apart, rel=1e-14)
    assert targets_of(side, side, aggregate="arithmetic").target_chosen[0] == pytest.approx(-900.5 + apart, rel=1e-14)


def test_a_certain_reference_that_is_clipped_gets_spans_in_the_anchors_shares():
    """Anchor −6 and −2, other 0 and 0; ε = 0.5 clips 0 to −4: −3 and −1. Where the anchor is certain too, nothing moves."""
    near = np.array([[-1.0, -1.2], [-2.0, -2.0], [-1.0, -1.0]])
    side = [np.array([[-6.0, 0.0], [-2.0, 0.0]]), np.zeros((2, 2)), near]
    with np.errstate(divide="raise", invalid="raise"):
        found = targets_of(side, side, trust_region="fixed", epsilon=0.5)
    assert found.clipped_chosen[:, 1].tolist() == [-4, 0, -4.2]
    spread = np.array([[-6.0, -3.0], [-2.0, -1.0]])
    expected = [slow_mixture("harmonic", one, [0.5, 0.5], [1, 1]) for one in (spread, side[1], near)]
    np.testing.assert_allclose(found.target_chosen, expected, rtol=1e-14)


def test_scaled_spans_add_up_to_the_clipped_sums_and_the_others_are_not_touched():
    random = np.random.default_rng(5)
    side = some_side(random, 9, 3)
    sums = sums_of(side)
    clipped = sums * np.where(random.random((9, 3)) < 0.5, 1.0, 1.1)
    one_hot = np.eye(3)
    for k in range(3):
        # If one reference has almost no weight, the aggregate is the other one's spans.
        apart, _ = mix("arithmetic", as_spans(side), sums, clipped, np.tile(one_hot[k], (9, 1)))
        assert apart.tolist() == [0.0] * 9
    alpha = np.full((9, 3), 1 / 3)
    apart, _ = mix("harmonic", as_spans(side), sums, clipped, alpha)
    expected = [slow_mixture("harmonic", one, alpha[n], clipped[n] / sums[n]) for n, one in enumerate(side)]
    np.testing.assert_allclose(apart + clipped[:, 0], expected, rtol=1e-12)


def test_who_decides_is_counted_over_spans():
    """Harmonic, α = ½. Spans of π = (1/2, 1/4): ρ = (1/3, 2/3), 1/Σρ² = 9/5; (1/4, 1/4): 2; 50 nats apart: 1. The mean over four
    spans, two of them of the first kind, is 1.65; r1 is the smallest in two of the four, r0 in one, and one is a tie."""
    chosen = [np.log([[1 / 2, 1 / 4], [1 / 4, 1 / 4], [1 / 2, 1 / 4]])]
    rejected = [np.array([[-60.0, -10.0]])]
    report = targets_of(chosen, rejected).diagnostics
    assert report["refs/effective_k"] == pytest.approx((9 / 5 + 2 + 9 / 5 + 1) / 4, abs=1e-12)
    assert report["refs/r0/argmin_share"] == pytest.approx(1.5 / 4)
    assert report["refs/r1/argmin_share"] == pytest.approx(2.5 / 4)
    assert report["refs/r0/accuracy"] == 1  # over completions, as always
    arithmetic = targets_of(chosen, rejected, aggregate="arithmetic", weights=[0.2, 0.8]).diagnostics
    # ρ ∝ (0.2·2, 0.8·1) = (1/3, 2/3); (0.2, 0.8): 1/0.68; and 1 in the last.
    assert arithmetic["refs/effective_k"] == pytest.approx((9 / 5 + 1 / 0.68 + 9 / 5 + 1) / 4, abs=1e-12)


def test_a_reference_without_weight_decides_nothing():
    side = [np.array([[-1.0, -400.0, -3.0]])]
    found = targets_of(side, side, weights=[0.5, 0.0, 0.5])
    assert found.target_chosen[0] == pytest.approx(-math.log((math.e + math.e**3) / 2), rel=1e-14)
    assert 1 < found.diagnostics["refs/effective_k"] < 2


@pytest.mark.parametrize("given_pairs", [0, 1, 3])
def test_spans_of_other_pairs_than_the_log_probs_are_refused(given_pairs):
    side = some_side(np.random.default_rng(6), 3, 2)
    method = settings_of(names_of(2), aggregate_over="span")
    spans = [PairSpans(as_spans(side[:given_pairs]), as_spans(side[:given_pairs]))] if given_pairs else None
    two = sums_of(side)[:2]
    with pytest.raises(ValueError, match=f"spans of {given_pairs} pairs, expected those of 2"):
        compute_targets(two, two, *method, spans=spans)


def test_no_pair_has_no_figures():
    method = settings_of(names_of(2), aggregate_over="span")
    found = compute_targets(np.empty((0, 2)), np.empty((0, 2)), *method, spans=[])
    assert found.target_chosen.shape == (0,) and found.diagnostics == {}


def test_taking_spans_of_some_completions_keeps_their_order():
    side = some_side(np.random.default_rng(7), 5, 2)
    taken = as_spans(side).take(np.array([3, 0, 3]))
    expected = as_spans([side[3], side[0], side[3]])
    np.testing.assert_array_equal(taken.lengths, expected.lengths)
    np.testing.assert_array_equal(taken.logps, expected.logps)


def test_counts_add_up():
    counts = SpanCounts.none(2)
    counts.add(SpanCounts(3, 4.5, np.array([1.0, 2.0])))
    counts.add(SpanCounts(1, 1.5, np.array([0.5, 0.5])))
    assert (counts.spans, counts.effective, counts.smallest.tolist()) == (4, 6.0, [1.5, 2.5])


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"weights": "thompson"}, "method.weights is 'thompson' with method.aggregate_over: span"),
        ({"weights": "sliding-window"}, "method.weights is 'sliding-window' with method.aggregate_over: span"),
        (
            {"compatibility": "official-code"},
            "method.aggregate_over is 'span' with method.compatibility: official-code",
        ),
    ],
)
def test_settings_that_do_not_support_spans_are_refused(keys, says):
    with pytest.raises(UserError, match=says):
        check_target(*settings_of(names_of(2), aggregate_over="span", **keys))
    check_target(
        *settings_of(names_of(2), aggregate_over="span", aggregate="geometric", **keys | {"compatibility": "none"})
    )


@pytest.mark.parametrize(
    "keys",
    [{"name": "dpo"}, {"aggregate": "single:r1"}, {"name": "multi-dpo"}, {"aggregate": "geometric"}, {"count": 1}, {}],
)
def test_where_references_are_mixed_over_spans(keys):
    count = {"count": 2} | keys
    method, names = settings_of(
        names_of(count.pop("count")), aggregate_over="span", **{k: v for k, v in keys.items() if k != "count"}
    )
    assert method.mixes_spans(names) == (not keys)
    assert not method.model_copy(update={"aggregate_over": "completion"}).mixes_spans(names)
