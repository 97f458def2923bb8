"""Which pairs make up each optimizer step, and how a step is split into micro-batches.

The set of pairs of a step depends only on the seed, the epoch and the number of pairs per step (per-device batch ×
accumulation × processes). How the step is split changes padding and memory, never the loss: that is a sum over the
step's pairs divided by their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from mrpo_pipeline.policy.examples import Batch, PreferenceExamples

Indices = npt.NDArray[np.int64]
Order = Literal["group_by_length", "random", "sequential"]

# Steps whose pairs are sorted by length together. Many make batches even, few keep them mixed; transformers takes 50.
GROUPED_STEPS = 50


def epoch_steps(lengths: Indices, pairs_per_step: int, *, seed: int, epoch: int, order: Order) -> list[Indices]:
    """The pairs of every optimizer step of one epoch; the last step holds what is left over.

    ``group_by_length`` draws the pairs at random in groups of 50 steps, and sorts each group by length before cutting it
    into steps; then the steps are shuffled. The longest step of the very first epoch is taken first, so that a run whose
    batches are too large for the memory ends at once. ``random`` draws every pair; ``sequential`` keeps their order.

    Args:
        lengths: (N,) tokens of each pair's longer row.
    """
    pairs = len(lengths)
    random = np.random.default_rng([seed, epoch])
    drawn = np.arange(pairs) if order == "sequential" else random.permutation(pairs)
    full = pairs - pairs % pairs_per_step
    if order == "group_by_length":
        group = GROUPED_STEPS * pairs_per_step
        for start in range(0, full, group):
            part = drawn[start : min(start + group, full)]
            drawn[start : start + len(part)] = part[np.argsort(-lengths[part], kind="stable")]
        steps = drawn[:full].reshape(-1, pairs_per_step)
        steps = steps[random.permutation(len(steps))]
        if epoch == 0 and len(steps):
            longest = int(lengths[steps].max(axis=1).argmax())
            steps[[0, longest]] = steps[[longest, 0]]
    else:
        steps = drawn[:full].reshape(-1, pairs_per_step)
    return list(steps) + ([drawn[full:]] if full < pairs else [])


def micro_batches(step: Indices, lengths: Indices, size: int, *, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """One process's micro-batches of a step: pairs of like length together, the longest first.

    Every process gets the same number of micro-batches. Where there are fewer pairs left than processes, one gets a pair
    of weight 0, written ``~index``, for all processes must take part in every step.

    Args:
        step: the pairs of the step, on all processes together.
        size: pairs in a micro-batch of one process.
    """
    ordered = step[np.argsort(-lengths[step], kind="stable")]
    batches = []
    for start in range(0, len(ordered), size * world_size):
        together = ordered[start : start + size * world_size]
        own = together[rank::world_size]
        batches.append(own.tolist() if len(own) else [~int(together[0])])
    return batches


class StepSampler(Sampler[list[int]]):
    """Micro-batches of one process, optimizer step after optimizer step.

    Trainer takes ``accumulation`` of them for a step, and the rest of the epoch for the last one; a resumed run leaves out
    those of the steps that are done.
    """

    def __init__(
        self,
        lengths: Indices,
        *,
        size: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        order: Order = "group_by_length",
        drop_last: bool = False,
    ) -> None:
        self.lengths = lengths
        self.size, self.accumulation = size, accumulation
        self.rank, self.world_size = rank, world_size
        self.seed, self.order, self.drop_last = seed, order, drop_last
        self.epoch = 0

    @property
    def pairs_per_step(self) -> int:
        return self.size * self.accumulation * self.world_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        steps = epoch_steps(self.lengths, self.pairs_per_step, seed=self.seed, epoch=self.epoch, order=self.order)
        for step in steps:
            if self.drop_last and len(step) < self.pairs_per_step:
                return
            yield from micro_batches(step, self.lengths, self.size, rank=self.rank, world_size=self.world_size)

    def __len__(self) -> int:
        steps, left = divmod(len(self.lengths), self.pairs_per_step)
        last = 0 if self.drop_last else -(-left // (self.size * self.world_size))
        return steps * self.accumulation + last


class AllOnce(Sampler[list[int]]):
    """Every pair once, longest first, shared out between the processes: for evaluation."""

    def __init__(self, lengths: Indices, *, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.batches = micro_batches(np.arange(len(lengths)), lengths, size, rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class PairLoader(DataLoader[Batch]):
    """Batches of pairs, each process its own.

    accelerate's loader is passed by: it would deal batches out to the processes a second time, and fill a short last one
    up with pairs that were seen already.
    """

    def __init__(self, examples: PreferenceExamples, sampler: Iterable[list[int]], **options: Any) -> None:
        # Its own generator: the torch generator feeds the adapter's dropout, and must not depend on how often the pairs
        # are looked at.
        options.setdefault("generator", torch.Generator())
        super().__init__(examples, batch_sampler=sampler, collate_fn=_as_is, **options)

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of every epoch."""
        if isinstance(self.batch_sampler, StepSampler):
            self.batch_sampler.set_epoch(epoch)


def _as_is(batch: Any) -> Any:
    return batch
