import numpy as np
import pytest
import torch
from tiny_policy import make_examples

from mrpo_pipeline.policy.metrics import evaluation_metrics
from mrpo_pipeline.recipe import Method


def test_ties_count_one_half_and_are_counted_apart():
    examples = make_examples(4)
    # Ahead, behind, equal, and equal within float32's resolution.
    chosen = torch.tensor([-10.0, -30.0, -20.0, -1000.0], dtype=torch.float64)
    rejected = torch.tensor([-20.0, -20.0, -20.0, -1000.0001], dtype=torch.float64)
    metrics = evaluation_metrics(chosen, rejected, examples, Method())
    assert metrics["accuracy/policy"] == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert metrics["accuracy/policy_ties"] == 0.5


def test_rewards_are_per_unit_where_normalize_asks_for_it():
    examples = make_examples(5)
    examples.chosen_units = examples.chosen_lengths.astype(np.float64)
    examples.rejected_units = examples.rejected_lengths.astype(np.float64)
    random = np.random.default_rng(0)
    chosen = examples.reference_chosen[:, 0] + random.normal(0, 3, 5)
    rejected = examples.reference_rejected[:, 0] + random.normal(0, 3, 5)
    metrics = evaluation_metrics(torch.tensor(chosen), torch.tensor(rejected), examples, Method(beta=2.0))
    up = 2 * (chosen - examples.reference_chosen[:, 0]) / examples.chosen_lengths
    down = 2 * (rejected - examples.reference_rejected[:, 0]) / examples.rejected_lengths
    assert metrics["rewards/margins"] == pytest.approx((up - down).mean())
    assert metrics["rewards/accuracies"] == pytest.approx((up > down).mean())
    assert metrics["loss"] == pytest.approx(np.log1p(np.exp(-(up - down))).mean())


def test_the_anchor_is_one_common_reference_whatever_the_method_trains_against():
    examples = make_examples(6, references=2)
    chosen = torch.tensor(examples.anchor_chosen + 1.0)
    rejected = torch.tensor(examples.anchor_rejected)
    assert evaluation_metrics(chosen, rejected, examples, Method())["accuracy/anchor"] == 1


def test_no_pairs_no_figures():
    empty = torch.empty(0, dtype=torch.float64)
    assert evaluation_metrics(empty, empty, make_examples(0), Method()) == {}
