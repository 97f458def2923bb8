"""State carried from step to step: the order of training, and BCO's running mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from step_scoped_run import examples_of

from mrpo_pipeline.policy.method_state import AT_START, MethodState, RewardMean, read_snapshot
from mrpo_pipeline.policy.sampler import StepSampler, TrainingOrder
from mrpo_pipeline.recipe import Method


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 1), (2, 1, 2)], ids=str)
def test_the_order_of_training_is_that_in_which_the_sampler_hands_out_pairs(drop_last, shape):
    """Three epochs of ten pairs, four per step, collected from the micro-batches of every process."""
    size, accumulation, world_size = shape
    lengths = np.random.default_rng(0).integers(3, 40, 10)
    samplers = [
        StepSampler(
            lengths, size=size, accumulation=accumulation, rank=rank, world_size=world_size, seed=3, drop_last=drop_last
        )
        for rank in range(world_size)
    ]
    order = TrainingOrder(samplers[0])
    step, seen = 0, []
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        for parts in zip(*samplers, strict=True):
            handed_out = sorted(pair for part in parts for batch in part for pair in batch if pair >= 0)
            assert sorted(order.of(step)) == handed_out
            assert sorted(order.before(step)) == sorted(seen)
            seen += handed_out
            step += 1
    assert step == 3 * (2 if drop_last else 3)
    late = TrainingOrder(samplers[-1])
    np.testing.assert_array_equal(late.before(step), order.before(step))


def test_the_running_mean_by_hand():
    """Steps of rewards (1, −1), (2, 0) and then (4, 2): δ is 0, then 2/4 = 0.5, then 8/6; a pair of weight 0 does not count."""
    accelerator, mean = Accelerator(cpu=True), RewardMean()
    assert mean.value == 0
    ones = torch.ones(1, dtype=torch.float64)
    mean.add(1 * ones, -1 * ones, ones)
    mean.add(torch.tensor([2.0, 99.0]).double(), torch.tensor([0.0, 99.0]).double(), torch.tensor([1.0, 0.0]).double())
    assert mean.value == 0, "the running step has no part in it"
    mean.end_step(accelerator)
    assert mean.value == 0.5
    mean.add(4 * ones, 2 * ones, ones)
    mean.end_step(accelerator)
    assert mean.value == pytest.approx(8 / 6, rel=1e-15)
    mean.end_step(accelerator)
    assert mean.count == 6


def test_a_fixed_method_carries_nothing_and_reads_nothing(tmp_path):
    examples = examples_of("modpo")
    state = MethodState(examples, Method(), StepSampler(examples.lengths, size=2), 0)
    assert not state
    batch = examples.__getitems__([0, 1])
    assert state.fill(batch) is batch
    for name in ("carried.json", "weights.parquet"):
        (tmp_path / name).write_text("what a run of another method left")
    state.write(tmp_path)
    assert not list(tmp_path.iterdir())
    assert read_snapshot(tmp_path) is AT_START


def test_what_is_written_is_read_back_to_the_last_bit(tmp_path):
    examples = examples_of("thompson")
    loss = Method(loss="mpo")
    state, again = (MethodState(examples, loss, StepSampler(examples.lengths, size=2), 0) for _ in range(2))
    state.rewards.total, state.rewards.count = -0.1 / 3, 7.0
    state.weights.thompson.accuracy = 1 / 3
    state.begin(0)
    state.weights.thompson.judge(0.9)
    state.end(0, Accelerator(cpu=True))
    state.write(tmp_path)
    again.restore(tmp_path)
    assert again.weights.thompson.state() == state.weights.thompson.state()
    assert again.rewards.total == state.rewards.total
    snapshot = read_snapshot(tmp_path)
    assert snapshot.reward_mean == state.reward_mean
    np.testing.assert_array_equal(snapshot.weights, again.snapshot().weights)
    assert again.results() == state.results()
