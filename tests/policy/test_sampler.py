import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_pipeline.policy.micro_batching import Measure, micro_batches
from mrpo_pipeline.policy.sampler import GROUPED_STEPS, EvalSampler, StepSampler, epoch_steps

RANDOM = np.random.default_rng(5)
LENGTHS = RANDOM.integers(3, 400, 1000)


SHARED, PADDED = Measure(LENGTHS, padded=False), Measure(LENGTHS, padded=True)


def steps_of(samplers):
    """The pairs of each optimizer step, from the micro-batches of every process."""
    per_rank = [list(sampler) for sampler in samplers]
    assert all(len(steps) == len(sampler) for steps, sampler in zip(per_rank, samplers, strict=True))
    together = list(zip(*per_rank, strict=True))
    for step in together:
        # A process with fewer forward passes would block the others.
        assert len({len(batches) for batches in step}) == 1
    return [sorted(i for batches in step for batch in batches for i in batch if i >= 0) for step in together]


@given(
    pairs=st.integers(1, 60),
    size=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    world_size=st.integers(1, 3),
    order=st.sampled_from(["group_by_length", "random", "sequential"]),
    epoch=st.integers(0, 3),
    tokens=st.one_of(st.none(), st.integers(1, 3000)),
    padded=st.booleans(),
)
def test_the_pairs_of_a_step_depend_on_nothing_but_their_number_the_seed_and_the_epoch(
    pairs, size, accumulation, world_size, order, epoch, tokens, padded
):
    lengths = LENGTHS[:pairs]
    packing = {} if tokens is None else {"measure": lambda: Measure(lengths, padded), "tokens": lambda _: tokens}
    samplers = [
        StepSampler(
            lengths,
            size=size,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
            seed=7,
            order=order,
            **packing,
        )
        for rank in range(world_size)
    ]
    alone = StepSampler(lengths, size=size * accumulation * world_size, seed=7, order=order)
    for sampler in (*samplers, alone):
        sampler.set_epoch(epoch)
    steps = steps_of(samplers)
    assert steps == steps_of([alone])
    assert sorted(i for step in steps for i in step) == list(range(pairs))


@given(
    step=st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=40, unique=True),
    tokens=st.integers(1, 4000),
    padded=st.booleans(),
    world_size=st.integers(1, 3),
)
def test_a_micro_batch_stays_within_its_tokens_or_is_a_single_pair(step, tokens, padded, world_size):
    measure = PADDED if padded else SHARED
    for rank in range(world_size):
        for batch in micro_batches(np.array(step), measure, tokens=tokens, rank=rank, world_size=world_size):
            cost = 2 * len(batch) * max(LENGTHS[batch]) if padded else sum(LENGTHS[batch])
            assert cost <= tokens or len(batch) == 1


def test_a_limit_above_a_steps_tokens_makes_one_micro_batch():
    step = np.arange(16)
    assert len(micro_batches(step, SHARED, tokens=int(LENGTHS[step].sum()))) == 1
    assert len(micro_batches(step, SHARED, tokens=int(LENGTHS[step].sum()) - 1)) == 2
    assert len(micro_batches(step, PADDED, tokens=int(LENGTHS[step].max()) * 32)) == 1


def test_processes_get_about_as_many_tokens():
    lengths = np.array([5, 8, 1, 4, 2, 7, 3, 6])
    measure = Measure(lengths, padded=False)
    for rank in range(2):
        (batch,) = micro_batches(np.arange(8), measure, tokens=100, rank=rank, world_size=2)
        assert sum(lengths[batch]) == 18


def test_every_process_has_as_many_micro_batches_when_pairs_run_out():
    batches = [micro_batches(np.arange(5), SHARED, tokens=None, pairs=2, rank=rank, world_size=4) for rank in range(4)]
    assert [len(own) for own in batches] == [1, 1, 1, 1]
    batches = [micro_batches(np.arange(3), SHARED, tokens=None, pairs=2, rank=rank, world_size=4) for rank in range(4)]
    real = [i for own in batches for batch in own for i in batch if i >= 0]
    assert sorted(real) == [0, 1, 2]
    ((filler,),) = batches[3]
    assert ~filler in range(3)


def test_a_process_whose_pairs_are_short_splits_them_rather_than_computing_some_twice():
    lengths = np.array([100, 10, 10, 10, 10, 90, 90, 90])
    step = np.arange(8)
    for rank in range(2):
        batches = micro_batches(step, Measure(lengths, padded=False), tokens=110, rank=rank, world_size=2)
        assert all(i >= 0 for batch in batches for i in batch)


def test_epochs_and_seeds_differ_and_an_order_can_be_had_again():
    def order(seed, epoch):
        return [step.tolist() for step in epoch_steps(LENGTHS, 8, seed=seed, epoch=epoch, order="group_by_length")]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_the_incomplete_step_comes_last_and_can_be_dropped():
    steps = epoch_steps(LENGTHS[:21], 8, seed=0, epoch=0, order="random")
    assert [len(step) for step in steps] == [8, 8, 5]
    sampler = StepSampler(LENGTHS[:21], size=2, accumulation=4, drop_last=True)
    assert len(sampler) == len(list(sampler)) == 2


def test_grouping_by_length_leaves_little_padding():
    def padded(order):
        steps = StepSampler(LENGTHS, size=4, accumulation=2, order=order)
        return sum(len(batch) * LENGTHS[batch].max() for step in steps for batch in step) / LENGTHS.sum()

    assert padded("group_by_length") < 1.05 < 1.2 < padded("random")


def test_within_a_step_pairs_of_similar_length_are_together_the_longest_first():
    batches = micro_batches(np.arange(16), PADDED, tokens=None, pairs=4)
    flat = [LENGTHS[i] for batch in batches for i in batch]
    assert flat == sorted(LENGTHS[:16].tolist(), reverse=True)


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_the_longest_step_is_tried_first(order):
    steps = epoch_steps(LENGTHS, 4, seed=3, epoch=0, order=order)
    assert LENGTHS[steps[0]].max() == LENGTHS.max()


def test_grouping_mixes_steps_of_short_and_long_pairs():
    steps = epoch_steps(LENGTHS, 4, seed=3, epoch=1, order="group_by_length")
    means = np.array([LENGTHS[step].mean() for step in steps[:GROUPED_STEPS]])
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.4


def test_evaluation_sees_every_pair_once_whatever_the_processes():
    for world_size in (1, 2, 3):
        samplers = [EvalSampler(LENGTHS[:23], size=4, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert len({len(sampler) for sampler in samplers}) == 1
        assert sorted(i for s in samplers for batch in s for i in batch if i >= 0) == list(range(23))
