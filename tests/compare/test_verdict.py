"""The verdict of a comparison on outcomes with a known truth."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mrpo_pipeline.compare.comparisons import FREE, LEFT_OUT, ONE, SEVERAL, TRAINING, Outcomes, compare_outcomes, shares
from mrpo_pipeline.compare.methods import SIMPO, Contender
from mrpo_pipeline.compare.verdict import verdict_of
from mrpo_pipeline.compare.verdict_case import Verdict
from mrpo_pipeline.evaluation.simulation import World, draw
from mrpo_pipeline.recipe import Method

METRIC = "accuracy/policy"
NAMES = ("base", "abacus", "atlas")
SINGLES = tuple(Contender(f"dpo-{name}", Method(aggregate=f"single:{name}"), NAMES) for name in NAMES)
MULTI, MRPO = Contender("multi-dpo", Method(name="multi-dpo"), NAMES), Contender("mrpo", Method(), NAMES)
EVERYONE = (*SINGLES, MULTI, MRPO)
NONE_AT_ALL = Contender("simpo", SIMPO, ())
WORLD = World("", prompts=1500, seed_spread=0.002, own_pairs=0.2, own_runs=0.2)


def judged(
    points: list[float],
    seeds: int = 3,
    contenders: tuple[Contender, ...] = EVERYONE,
    draws: int = 0,
    world: World = WORLD,
) -> Verdict:
    """The verdict if the methods' true values differ from 70% by these points, in the order of ``contenders``."""
    drawn = draw(world, [point / 100 for point in points], seeds, np.random.default_rng(draws))
    return _of(drawn.outcomes, drawn.clusters, contenders)


def _of(drawn: np.ndarray, clusters: np.ndarray, contenders: tuple[Contender, ...]) -> Verdict:
    """The verdict on outcomes (methods, pairs, seeds), in the order of ``contenders``."""
    methods = {one.name: {METRIC: drawn[i]} for i, one in enumerate(contenders)}
    outcomes = Outcomes(clusters, {METRIC: np.full(len(clusters), 0.5)}, methods)
    return verdict_of(contenders, compare_outcomes(contenders, outcomes), shares(outcomes), drawn[0].shape[1])


def test_better_than_every_single_reference_is_better() -> None:
    verdict = judged([0, 2, -5, 1, 8])
    assert (verdict.kind, verdict.method, verdict.against, verdict.drop) == ("better", "mrpo", "dpo-abacus", [])
    told = re.fullmatch(
        r"mrpo is better than the best single reference \(abacus\) by (\S+) points \((\S+) to (\S+)\)\.",
        verdict.sentence,
    )
    assert told
    middle, low, high = map(float, told.groups())
    assert 0 < low < middle < high and low < 6 < high


def test_better_than_all_single_references_but_one_is_not_better() -> None:
    verdict = judged([0, 8, -5, 1, 8])
    assert verdict.kind == "none"
    assert verdict.sentence.startswith("No difference shown between mrpo and the best single reference (abacus)") or (
        "multi-dpo" not in verdict.sentence
    )
    assert "more held-out pairs" in verdict.text() or "seeds" in verdict.text()


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_verdict_is_about_mrpo_if_it_is_among_the_methods(seeds: int) -> None:
    verdict = judged([0, 2, -5, 20, 2], seeds)
    assert (verdict.method, verdict.against, verdict.drop) == ("mrpo", "dpo-abacus", [])
    assert "mrpo" in verdict.sentence and "multi-dpo" not in verdict.sentence
    if seeds == 3:
        assert verdict.kind == "none"
        assert verdict.sentences[0].startswith("multi-dpo is better than the best single reference (abacus) by ")
    both = judged([0, 2, -5, 20, 12], seeds)
    assert both.sentence.startswith("mrpo is better than" if seeds == 3 else "One seed")
    assert any(text.startswith("multi-dpo is better than ") for text in both.sentences) == (seeds == 3)


def test_without_mrpo_the_verdict_is_on_the_best_method_with_several() -> None:
    other = Contender("other", Method(name="multi-dpo", weights="uniform"), NAMES)
    assert judged([0, 2, -5, 20, 2], contenders=(*SINGLES, MULTI, other)).method == "multi-dpo"


def test_the_headline_is_one_sentence() -> None:
    for points in ([0, 2, -5, 1, 8], [0, 8, -5, 1, 8], [0, 12, -2, 1, 3], [0, 0, 0, 0, 0]):
        for seeds in (1, 3):
            assert len(re.findall(r"\.(?= |$)", judged(points, seeds).sentence)) == 1


def flipped(gain: float, noise: float, pairs: int, random: np.random.Generator) -> Outcomes:
    """mrpo is surely better than dpo-base, pair by pair; dpo-atlas is as good as dpo-base overall, but differs on most pairs."""
    base = np.repeat((random.random((pairs, 1)) < 0.7).astype(float), 3, axis=1)
    chance = random.random((pairs, 3))
    atlas = np.where(base == 0, chance < noise, chance >= noise * 3 / 7).astype(float)
    mrpo = np.where((base == 0) & (random.random((pairs, 3)) < gain), 1.0, base)
    methods = {"dpo-base": {METRIC: base}, "dpo-atlas": {METRIC: atlas}, "mrpo": {METRIC: mrpo}}
    return Outcomes(np.arange(pairs), {METRIC: np.full(pairs, 0.5)}, methods)


@pytest.mark.parametrize(("gain", "noise"), [(0.05, 0.5), (0.03, 0.3), (0.08, 0.6), (0.0, 0.1), (0.0, 0.001)])
def test_the_sentence_does_not_contradict_its_figures(gain: float, noise: float) -> None:
    """The verdict reports no difference only if none is shown; what it calls unlikely lies outside the reported interval."""
    contenders, seen = (SINGLES[0], SINGLES[2], MRPO), set()
    for number in range(24):
        outcomes = flipped(gain, noise, (400, 1000, 3000)[number % 3], np.random.default_rng(number))
        compared = compare_outcomes(contenders, outcomes)
        verdict = verdict_of(contenders, compared, shares(outcomes), 3)
        told = next(x for x in compared if (x.method, x.against) == (verdict.method, verdict.against))
        if verdict.sentence.startswith("No difference shown"):
            assert told.p_corrected >= 0.05
            assert ("may be chance" in verdict.sentence) == (told.known.low > 0 or told.known.high < 0)
        elif verdict.kind == "none":
            assert told.better and verdict.sentence.startswith("No clear answer: mrpo is better than the best single")
            assert "not shown to be better than " in verdict.sentence
        if unlikely := re.search(r"more than (\S+) points is unlikely", verdict.text()):
            signed = re.findall(r"\((\S+) to (\S+)\)", verdict.sentence)[-1]
            assert float(unlikely[1]) == max(abs(float(bound.replace("−", "-"))) for bound in signed)
        seen.add((verdict.kind, verdict.sentence[:8]))
    if gain:
        assert ("none", "No clear") in seen


def test_with_as_many_pairs_as_the_verdict_asks_for_one_point_over_every_single_reference_is_seen() -> None:
    """Beating each of three after the correction needs far more pairs than a single comparison."""
    alike = replace(WORLD, seed_spread=0.0003)
    sentences = [judged([0, 0, 0, 0, 1], 5, draws=number, world=alike).text() for number in range(15)]
    asked = [re.search(r"About (\S+) more held-out pairs", sentence) for sentence in sentences]
    counts = [int(found[1].replace(",", "")) for found in asked if found]
    assert len(counts) >= 5  # the other sentences ask for more seeds too
    larger = replace(alike, prompts=alike.prompts + int(np.median(counts)))
    seen = sum(judged([0, 0, 0, 0, 1], 5, draws=100 + number, world=larger).kind == "better" for number in range(60))
    assert seen / 60 > 0.7


def test_one_single_reference_better_than_every_method_with_several_is_worse_and_the_others_are_to_be_dropped() -> None:
    verdict = judged([0, 12, -2, 1, 3])
    assert (verdict.kind, verdict.method, verdict.against) == ("worse", "mrpo", "dpo-abacus")
    assert verdict.drop == ["base", "atlas"]
    assert "DPO against abacus alone" in verdict.sentence
    assert any("leave_one_out" in sentence for sentence in verdict.sentences)


def test_of_two_references_the_one_that_harms_is_named() -> None:
    two = tuple(replace(one, references=NAMES[:2]) for one in (SINGLES[0], SINGLES[1], MRPO))
    verdict = judged([10, -4, 2], contenders=two)
    assert (verdict.kind, verdict.drop) == ("worse", ["abacus"])
    assert "Drop abacus" in " ".join(verdict.sentences)


def test_of_two_references_one_that_harms_a_method_and_helps_none_is_named() -> None:
    two = tuple(replace(one, references=NAMES[:2]) for one in (SINGLES[0], SINGLES[1], MULTI, MRPO))
    verdict = judged([10, -4, 10, -5], contenders=two)
    assert (verdict.kind, verdict.drop) == ("none", ["abacus"])
    assert any(sentence.startswith("Drop abacus: mrpo is worse") for sentence in verdict.sentences)
    # If another method benefits from it, it is kept.
    assert judged([10, -4, 20, -5], contenders=two).drop == []


def test_a_reference_without_which_the_method_does_better_is_to_be_dropped_whoever_wins() -> None:
    left_out = [
        Contender(f"mrpo-without-{name}", Method(), tuple(x for x in NAMES if x != name), name) for name in NAMES[1:]
    ]
    verdict = judged([0, 0, 0, 0, 3, 3, 12], contenders=(*EVERYONE, *left_out))
    assert verdict.drop == ["atlas"]
    assert any(sentence.startswith("Drop atlas: mrpo does better without it, by ") for sentence in verdict.sentences)


def test_one_seed_claims_nothing_however_large_the_difference() -> None:
    verdict = judged([0, 2, -5, 1, 20], seeds=1)
    assert (verdict.kind, verdict.method, verdict.against, verdict.drop) == ("one seed", "mrpo", "dpo-abacus", [])
    assert "cannot be known" in verdict.sentences[0] and "--seeds" in verdict.sentences[0]


def test_without_a_method_with_several_the_best_single_one_is_compared_with_the_start() -> None:
    verdict = judged([0, 5, -5], contenders=SINGLES)
    assert (verdict.kind, verdict.method, verdict.against) == ("better", "dpo-abacus", "start")


def paid(verdict: Verdict) -> str:
    (sentence,) = [text for text in verdict.sentences if text.startswith("Did references pay? ")]
    return sentence


def test_the_benefit_of_references_is_a_separate_sentence() -> None:
    everyone = (*EVERYONE, NONE_AT_ALL)
    better = paid(judged([0, 2, -5, 1, 8, 2], contenders=everyone))
    told = re.fullmatch(
        r"Did references pay\? Against training without any \(simpo\): mrpo is better by (\S+) points \((\S+) to (\S+)\); "
        r"DPO against abacus is not shown to differ, (\S+) points .*\.",
        better,
    )
    assert told and 5 < float(told[1]) < 10 and 0 < float(told[2]) < float(told[1]) < float(told[3])
    worse = paid(judged([0, 2, -5, 1, 2, 12], contenders=everyone))
    assert "mrpo is worse by " in worse and "DPO against abacus is worse by " in worse
    # With single references only, and with one seed.
    alone = paid(judged([0, 8, -5, 0], contenders=(*SINGLES, NONE_AT_ALL)))
    assert ": DPO against abacus is better by " in alone and ";" not in alone
    once = paid(judged([0, 2, -5, 1, 8, 0], seeds=1, contenders=everyone))
    assert (
        "better" not in once and "As trained here with one seed, against training without any (simpo): mrpo +" in once
    )


def test_training_without_a_reference_is_neither_one_of_several_nor_a_single_one_and_changes_no_other_claim() -> None:
    everyone = (*EVERYONE, NONE_AT_ALL)
    for worth in (-0.2, 0, 0.2):
        drawn = draw(WORLD, [0, 0.02, -0.05, 0.01, 0.03, worth], 3, np.random.default_rng(0))
        without, with_it = (_of(drawn.outcomes, drawn.clusters, those) for those in (EVERYONE, everyone))
        kept = [text for text in with_it.sentences if not text.startswith("Did references pay?")]
        assert len(kept) == len(with_it.sentences) - 1
        assert replace(with_it, sentences=kept) == without
    drawn = draw(WORLD, [0, 0, 0, 0, 0, 0.02], 3, np.random.default_rng(1))
    methods = {one.name: {METRIC: drawn.outcomes[i]} for i, one in enumerate(everyone)}
    outcomes = Outcomes(drawn.clusters, {METRIC: np.full(1500, 0.5)}, methods)
    own = [x for x in compare_outcomes(everyone, outcomes) if x.question == FREE]
    assert {(x.method, x.against) for x in own} == {(one.name, "simpo") for one in EVERYONE}
    smallest = min(own, key=lambda x: x.known.p)
    assert smallest.p_corrected == pytest.approx(5 * smallest.known.p) and {x.family for x in own} == {5}
    only = _of(drawn.outcomes[-1:], drawn.clusters, (NONE_AT_ALL,))
    assert only.kind == "none" and "No method with a reference" in only.sentence


def test_a_verdict_without_trained_methods_says_so() -> None:
    assert "nothing can be compared" in verdict_of(EVERYONE, [], {}, 3).sentence


def test_every_question_is_corrected_by_itself_and_paired_by_seed() -> None:
    drawn = draw(WORLD, [0, 0, 0, 0, 0.05], 3, np.random.default_rng(1))
    methods = {one.name: {METRIC: drawn.outcomes[i]} for i, one in enumerate(EVERYONE)}
    start = np.where(np.arange(1500) % 3 > 0, 1.0, 0.0)
    compared = compare_outcomes(EVERYONE, Outcomes(drawn.clusters, {METRIC: start}, methods))
    counts = {
        question: sum(x.question == question for x in compared) for question in (SEVERAL, ONE, TRAINING, LEFT_OUT, FREE)
    }
    assert counts == {SEVERAL: 6, ONE: 3, TRAINING: 5, LEFT_OUT: 0, FREE: 0}
    own = [x for x in compared if x.question == SEVERAL]
    smallest = min(own, key=lambda x: x.known.p)
    assert smallest.p_corrected == pytest.approx(6 * smallest.known.p)
    one = next(x for x in own if (x.method, x.against) == ("mrpo", "dpo-atlas"))
    assert one.known.mean == pytest.approx(drawn.outcomes[4].mean() - drawn.outcomes[2].mean())
    against_start = next(x for x in compared if (x.method, x.against) == ("mrpo", "start"))
    assert against_start.known.mean == pytest.approx(drawn.outcomes[4].mean() - 2 / 3, abs=1e-3)


def test_better_is_claimed_in_at_most_5_of_100_draws_where_it_is_as_good_as_the_best_single_reference() -> None:
    """The hardest case: one single reference stands out, and the methods with several are exactly as good."""
    trials = 250
    small = replace(WORLD, prompts=300, seed_spread=0.01)
    claims = sum(judged([0, 10, 0, 10, 10], draws=i, world=small).kind == "better" for i in range(trials))
    assert stats.binomtest(claims, trials).proportion_ci(0.95).low <= 0.05
