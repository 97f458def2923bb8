import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrpo_pipeline.policy.batches import GROUPED_STEPS, AllOnce, StepSampler, epoch_steps, micro_batches

RANDOM = np.random.default_rng(5)
LENGTHS = RANDOM.integers(3, 400, 1000)


def steps_of(samplers):
    """The pairs of each optimizer step, from the micro-batches of every process."""
    per_rank = [list(sampler) for sampler in samplers]
    accumulation = samplers[0].accumulation
    assert len({len(batches) for batches in per_rank}) == 1
    assert all(len(batches) == len(sampler) for batches, sampler in zip(per_rank, samplers, strict=True))
    return [
        sorted(i for batches in per_rank for batch in batches[start : start + accumulation] for i in batch if i >= 0)
        for start in range(0, len(per_rank[0]), accumulation)
    ]


@given(
    pairs=st.integers(1, 60),
    size=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    world_size=st.integers(1, 3),
    order=st.sampled_from(["group_by_length", "random", "sequential"]),
    epoch=st.integers(0, 3),
)
def test_the_pairs_of_a_step_depend_on_nothing_but_their_number_the_seed_and_the_epoch(
    pairs, size, accumulation, world_size, order, epoch
):
    lengths = LENGTHS[:pairs]
    samplers = [
        StepSampler(
            lengths, size=size, accumulation=accumulation, rank=rank, world_size=world_size, seed=7, order=order
        )
        for rank in range(world_size)
    ]
    alone = StepSampler(lengths, size=size * accumulation * world_size, seed=7, order=order)
    for sampler in (*samplers, alone):
        sampler.set_epoch(epoch)
    steps = steps_of(samplers)
    assert steps == steps_of([alone])
    assert sorted(i for step in steps for i in step) == list(range(pairs))


def test_every_process_has_as_many_micro_batches_when_pairs_run_out():
    batches = [micro_batches(np.arange(5), LENGTHS, 2, rank=rank, world_size=4) for rank in range(4)]
    assert [len(own) for own in batches] == [1, 1, 1, 1]
    batches = [micro_batches(np.arange(3), LENGTHS, 2, rank=rank, world_size=4) for rank in range(4)]
    real = [i for own in batches for batch in own for i in batch if i >= 0]
    assert sorted(real) == [0, 1, 2]
    assert batches[3] == [[~real[0]]]


def test_epochs_and_seeds_differ_and_an_order_can_be_had_again():
    def order(seed, epoch):
        return [step.tolist() for step in epoch_steps(LENGTHS, 8, seed=seed, epoch=epoch, order="group_by_length")]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_the_incomplete_step_comes_last_and_can_be_dropped():
    steps = epoch_steps(LENGTHS[:21], 8, seed=0, epoch=0, order="group_by_length")
    assert [len(step) for step in steps] == [8, 8, 5]
    sampler = StepSampler(LENGTHS[:21], size=2, accumulation=4, drop_last=True)
    assert len(sampler) == len(list(sampler)) == 8


def test_grouping_by_length_leaves_little_padding():
    def padded(order):
        batches = StepSampler(LENGTHS, size=4, accumulation=2, order=order)
        return sum(len(batch) * LENGTHS[batch].max() for batch in batches) / LENGTHS.sum()

    assert padded("group_by_length") < 1.05 < 1.2 < padded("random")


def test_within_a_step_pairs_of_like_length_stand_together_the_longest_first():
    step = np.arange(16)
    batches = micro_batches(step, LENGTHS, 4)
    flat = [LENGTHS[i] for batch in batches for i in batch]
    assert flat == sorted(LENGTHS[:16].tolist(), reverse=True)


def test_the_longest_step_is_tried_first():
    steps = epoch_steps(LENGTHS, 4, seed=3, epoch=0, order="group_by_length")
    assert LENGTHS[steps[0]].max() == max(LENGTHS[step].max() for step in steps)


def test_grouping_mixes_steps_of_short_and_long_pairs():
    steps = epoch_steps(LENGTHS, 4, seed=3, epoch=1, order="group_by_length")
    means = np.array([LENGTHS[step].mean() for step in steps[:GROUPED_STEPS]])
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.4


def test_evaluation_sees_every_pair_once_whatever_the_processes():
    for world_size in (1, 2, 3):
        samplers = [AllOnce(LENGTHS[:23], size=4, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert len({len(sampler) for sampler in samplers}) == 1
        assert sorted(i for s in samplers for batch in s for i in batch if i >= 0) == list(range(23))
