"""The verdict uses a metric that training changed, and ties cover differences between engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mrpo_pipeline.compare.comparisons import Outcomes, compare_outcomes, shares
from mrpo_pipeline.compare.methods import SIMPO, Contender
from mrpo_pipeline.compare.metric_selection import drift_per_token, metric_that_moves, ties_within, with_references
from mrpo_pipeline.compare.verdict import verdict_of
from mrpo_pipeline.evaluation.pair_outcomes import pair_outcomes
from mrpo_pipeline.recipe import Method

NAMES = ("base", "abacus")
CONTENDERS = (*(Contender(f"dpo-{name}", Method(aggregate=f"single:{name}"), NAMES) for name in NAMES),
              Contender("mrpo", Method(), NAMES))  # fmt: skip
PAIRS = 400


@dataclass
class Examples:
    """The part of ``PreferenceExamples`` that outcomes read."""

    anchor_chosen: Any
    anchor_rejected: Any
    chosen_counts: Any
    rejected_counts: Any

    @property
    def anchor(self) -> tuple[Any, Any]:
        return self.anchor_chosen, self.anchor_rejected


def examples(random: np.random.Generator) -> Any:
    """Sides about 18 nats apart, of about 100 tokens."""
    chosen = -150 + 20 * random.normal(size=PAIRS)
    lengths = random.integers(40, 160, (2, PAIRS))
    return Examples(chosen, chosen - 18 * random.choice([-1, 1], PAIRS), *lengths)


def outcomes(moves: dict[str, float], random: np.random.Generator, engine: float = 0.0) -> tuple[Outcomes, Any]:
    """Methods that move each pair's margin by this many nats plus half a nat of noise; ``engine``: drift in nats per token."""
    one = examples(random)
    off = [engine * random.normal(size=PAIRS) * np.sqrt(tokens) for tokens in (one.chosen_counts, one.rejected_counts)]
    start = (one.anchor_chosen + off[0], one.anchor_rejected + off[1])
    ties = ties_within(drift_per_token(*start, one), one)
    made = {}
    for name, move in moves.items():
        runs = [
            pair_outcomes(start[0] + move + bool(move) * 0.5 * random.normal(size=PAIRS), start[1], one, ties=ties)
            for _ in range(3)
        ]
        made[name] = {metric: np.stack([run[metric] for run in runs], axis=1) for metric in runs[0]}
    return Outcomes(np.arange(PAIRS), pair_outcomes(*start, one, ties=ties), made), one


def judged(found: Outcomes, asked: str = "accuracy/policy") -> tuple[str, Any]:
    metric, note = metric_that_moves(found, asked)
    compared = compare_outcomes(CONTENDERS, found)
    return metric, verdict_of(CONTENDERS, compared, shares(found), 3, metric, note=note)


def test_if_no_pair_changes_sides_the_verdict_uses_the_metric_that_moved() -> None:
    found, _ = outcomes({"dpo-base": 0.1, "dpo-abacus": 0.1, "mrpo": 0.6}, np.random.default_rng(0))
    metric, verdict = judged(found)
    assert metric == "accuracy/anchor"
    assert (verdict.kind, verdict.method) == ("better", "mrpo")
    assert verdict.sentences[0].startswith("Training turned none of the 400 held-out pairs in “prefers the chosen side")
    assert "The verdict looks at “moved towards the chosen side, against the anchor” instead." in verdict.sentences[0]


def test_what_moved_without_a_reference_decides_for_no_metric() -> None:
    moves = {"dpo-base": 0.1, "dpo-abacus": 0.1, "mrpo": 0.6, "simpo": 30.0}
    found, _ = outcomes(moves, np.random.default_rng(0))
    everyone = (*CONTENDERS, Contender("simpo", SIMPO, ()))
    assert metric_that_moves(found, "accuracy/policy")[0] == "accuracy/policy"
    assert metric_that_moves(with_references(found, everyone), "accuracy/policy")[0] == "accuracy/anchor"
    alone, _ = outcomes({"simpo": 30.0}, np.random.default_rng(0))
    assert with_references(alone, everyone).methods.keys() == {"simpo"}


def test_a_metric_that_moves_is_kept() -> None:
    found, _ = outcomes({"dpo-base": 0.1, "dpo-abacus": 0.1, "mrpo": 30.0}, np.random.default_rng(0))
    assert metric_that_moves(found, "accuracy/policy") == ("accuracy/policy", "")


def test_if_no_metric_moved_that_is_reported_and_no_single_reference_is_the_best() -> None:
    found, _ = outcomes({"dpo-base": 0.0, "dpo-abacus": 0.0, "mrpo": 0.0}, np.random.default_rng(0))
    metric, verdict = judged(found)
    assert metric == "accuracy/policy" and verdict.kind == "none" and verdict.drop == []
    assert "Train longer" in verdict.sentences[0]
    assert "the single references base and abacus, which are level" in verdict.sentence
    assert "best single reference" not in verdict.text()


@pytest.mark.parametrize("engine", [0.0, 7e-5, 2e-3, 0.04])
def test_a_difference_between_engines_is_a_tie(engine: float) -> None:
    """Float32, the worst seen in float32, and bfloat16: a policy that did not move counts as unmoved."""
    found, one = outcomes({"mrpo": 0.0}, np.random.default_rng(1), engine)
    values = found.methods["mrpo"]["accuracy/anchor"]
    assert (values == 0.5).mean() > 0.93
    assert found.start["accuracy/anchor"].mean() == pytest.approx(0.5, abs=0.02)
    moved, _ = outcomes({"mrpo": 3.0}, np.random.default_rng(1), engine)
    assert moved.methods["mrpo"]["accuracy/anchor"].mean() > 0.9
    assert one is not None


def test_the_difference_to_another_model_is_not_drift() -> None:
    one = examples(np.random.default_rng(2))
    assert drift_per_token(one.anchor_chosen + 40, one.anchor_rejected - 30, one) == 0.0
    assert ties_within(0.0, one).max() == 0.0
