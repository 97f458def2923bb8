"""The pairs of each optimizer step, and data loaders over them.

The pairs of a step depend only on the seed, the epoch and the number of pairs per step (per-device batch × accumulation ×
processes). Grouped by prompt, a step holds all pairs of some prompts, up to that number of pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mrpo_pipeline.dataset.completion_numbering import Distinct, pairs_by_prompt
from mrpo_pipeline.dataset.examples import Batch, PreferenceExamples
from mrpo_pipeline.pairs.counts import require_balance
from mrpo_pipeline.policy.micro_batching import Indices, Measure, micro_batches, token_limit

Order = Literal["group_by_length", "random", "sequential"]

# Steps whose pairs are sorted by length together. More even out batch lengths, fewer mix pairs better; transformers uses 50.
GROUPED_STEPS = 50


def epoch_steps(lengths: Indices, pairs_per_step: int, *, seed: int, epoch: int, order: Order) -> list[Indices]:
    """The pairs of every optimizer step of one epoch; the last step holds the remainder.

    ``random`` shuffles the pairs. ``group_by_length`` shuffles them, sorts each group of 50 steps by length, cuts it into
    steps and shuffles the steps. With both, the step with the longest pair comes first, so that a run that does not fit into
    memory fails at once. ``sequential`` keeps the order of the pairs.

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
    if order == "group_by_length":
        steps = steps[random.permutation(len(steps))]
    if order != "sequential" and epoch == 0 and len(steps):
        longest = int(lengths[steps].max(axis=1).argmax())
        steps[[0, longest]] = steps[[longest, 0]]
    return list(steps) + ([drawn[full:]] if full < pairs else [])


def grouped_steps(
    units: Sequence[Indices], pairs_per_step: int, lengths: Indices, *, seed: int, epoch: int, order: Order
) -> list[Indices]:
    """:func:`epoch_steps` for units of pairs that stay in one step; no unit has more pairs than a step.

    The unit sizes of each step are fixed, the largest first, so that every epoch has the same number of steps. The units of
    each size are drawn at random. ``group_by_length`` is ``random`` here.
    """
    random = np.random.default_rng([seed, epoch])
    drawn = np.arange(len(units)) if order == "sequential" else random.permutation(len(units))
    of_size: dict[int, list[int]] = {}
    for unit in drawn[::-1].tolist():
        of_size.setdefault(len(units[unit]), []).append(unit)
    steps = [[of_size[size].pop() for size in sizes] for sizes in _sizes(units, pairs_per_step)]
    if order == "sequential":
        return [np.concatenate([units[unit] for unit in step]) for step in sorted(map(sorted, steps))]
    together = [np.concatenate([units[unit] for unit in steps[at]]) for at in random.permutation(len(steps))]
    if epoch == 0 and together:
        longest = int(np.argmax([lengths[step].max() for step in together]))
        together[0], together[longest] = together[longest], together[0]
    return together


def _sizes(units: Sequence[Indices], pairs_per_step: int) -> Iterator[list[int]]:
    """The unit sizes of each step, by always taking the largest unit that fits."""
    left = dict(sorted(Counter(len(unit) for unit in units).items(), reverse=True))
    while left:
        room, sizes = pairs_per_step, []
        for size in list(left):
            count = min(left[size], room // size)
            sizes += [size] * count
            room -= size * count
            left[size] -= count
            if not left[size]:
                del left[size]
        yield sizes


class StepSampler(Sampler[list[list[int]]]):
    """Every optimizer step of an epoch as the micro-batches of one process.

    Args:
        size, accumulation: their product is the number of pairs of a step on one process.
        measure: called at the start of each epoch, when it is known whether prompts are shared; None for padded rows.
        tokens: the most tokens of a micro-batch; None for micro-batches of ``size`` pairs.
        distinct: groups pairs by prompt; ``drop_last`` drops nothing then.
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
        order: Order = "random",
        drop_last: bool = False,
        measure: Callable[[], Measure] | None = None,
        tokens: Callable[[Measure], int] | None = None,
        distinct: Distinct | None = None,
    ) -> None:
        self.lengths = lengths
        self.size, self.accumulation = size, accumulation
        self.rank, self.world_size = rank, world_size
        self.seed, self.order, self.drop_last = seed, order, drop_last
        self.measure, self.tokens = measure, tokens
        self.epoch = 0
        self.distinct = distinct
        self._units = None if distinct is None else pairs_by_prompt(distinct.prompts, self.pairs_per_step)
        self._grouped = 0 if self._units is None else sum(1 for _ in _sizes(self._units, self.pairs_per_step))

    @property
    def pairs_per_step(self) -> int:
        return self.size * self.accumulation * self.world_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def steps(self, epoch: int | None = None) -> list[Indices]:
        """The pairs of every step of an epoch (by default the running one) on all processes together."""
        epoch = self.epoch if epoch is None else epoch
        if self._units is None:
            steps = epoch_steps(self.lengths, self.pairs_per_step, seed=self.seed, epoch=epoch, order=self.order)
        else:
            steps = grouped_steps(
                self._units, self.pairs_per_step, self.lengths, seed=self.seed, epoch=epoch, order=self.order
            )
        kept, left = steps[: len(self)], steps[len(self) :]
        seen = sum(len(step) for step in kept)
        require_balance("an epoch's steps", len(self.lengths), seen, {"drop_last": sum(len(step) for step in left)})
        return kept

    def __iter__(self) -> Iterator[list[list[int]]]:
        measure = Measure(self.lengths, True, self.distinct) if self.measure is None else self.measure()
        limits: dict[str, int | None] = {"tokens": None, "pairs": self.size}
        if self.tokens is not None:
            limits = {"tokens": self.tokens(measure), "pairs": None}
        for step in self.steps():
            yield micro_batches(step, measure, **limits, rank=self.rank, world_size=self.world_size)

    def __len__(self) -> int:
        if self._units is not None:
            return self._grouped
        steps, left = divmod(len(self.lengths), self.pairs_per_step)
        return steps + int(left > 0 and not self.drop_last)


class TrainingOrder:
    """The pairs of every step of a run on all processes together; steps are counted from 0 over all epochs.

    The order depends only on the sampler's seed, so every process and every resumed run can compute it.
    """

    def __init__(self, sampler: StepSampler) -> None:
        self.sampler = sampler
        self._pairs: Indices = np.empty(0, dtype=np.int64)
        self._ends = [0]

    def of(self, step: int) -> Indices:
        """(B,) the pairs of a step."""
        self._reach(step + 1)
        return self._pairs[self._ends[step] : self._ends[step + 1]]

    def before(self, step: int) -> Indices:
        """(T,) the pairs of all earlier steps in order; a pair of several epochs is repeated."""
        self._reach(step)
        return self._pairs[: self._ends[step]]

    def _reach(self, steps: int) -> None:
        while len(self._ends) <= steps:
            epoch = self.sampler.steps((len(self._ends) - 1) // len(self.sampler))
            self._pairs = np.concatenate([self._pairs, *epoch])
            self._ends += (self._ends[-1] + np.cumsum([len(step) for step in epoch])).tolist()


class EvalSampler(Sampler[list[int]]):
    """Every pair once, longest first, divided among the processes, for evaluation.

    Args:
        size: pairs of a batch. distinct: where given, the pairs of a prompt stay together, and a batch has as many distinct
            completions as ``size`` of the longest pairs have.
    """

    def __init__(
        self, lengths: Indices, *, size: int, rank: int = 0, world_size: int = 1, distinct: Distinct | None = None
    ) -> None:
        pairs = np.arange(len(lengths))
        measure = Measure(lengths, True, distinct)
        limits: dict[str, int | None] = {"tokens": None, "pairs": size}
        if distinct is not None and len(pairs):
            limits = {"tokens": token_limit(measure, size, "auto", on_cpu=False), "pairs": None}
        self.batches = micro_batches(pairs, measure, **limits, rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class StepDataset(Dataset[list[Batch]]):
    """Examples read one optimizer step at a time; with ``distinct``, batches also hold the ``numbers`` of prompts and sides."""

    def __init__(self, examples: PreferenceExamples, distinct: Distinct | None = None) -> None:
        self.examples = examples
        self.distinct = distinct

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, step: Sequence[Sequence[int]]) -> list[Batch]:
        return [self.batch(pairs) for pairs in step]

    def batch(self, pairs: Sequence[int]) -> Batch:
        batch = self.examples.__getitems__(pairs)
        return batch if self.distinct is None else batch | {"numbers": self.distinct.numbers[batch["indices"]]}


class EvalDataset(StepDataset):
    """As :class:`StepDataset`, taken a batch at a time: for evaluation."""

    def __getitems__(self, step: Sequence[int]) -> Batch:  # type: ignore[override]
        return self.batch(step)


class PairLoader(DataLoader[Batch]):
    """This process's batches of pairs, or steps of batches.

    It bypasses accelerate's loader, which would split batches over the processes a second time, and fill up the last one with
    repeated pairs.
    """

    def __init__(self, examples: PreferenceExamples | StepDataset, sampler: Iterable[Any], **options: Any) -> None:
        # A separate generator: torch's global one feeds the adapter's dropout, which must not depend on data loading.
        options.setdefault("generator", torch.Generator())
        super().__init__(examples, batch_sampler=sampler, collate_fn=_as_is, **options)  # type: ignore[arg-type]

    @classmethod
    def of(cls, examples: PreferenceExamples | StepDataset, sampler: Iterable[Any], arguments: Any) -> PairLoader:
        """A loader with the workers and pinned memory of ``transformers.TrainingArguments``."""
        return cls(
            examples,
            sampler,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory and arguments.device.type == "cuda",
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
        )

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the start of every epoch."""
        if isinstance(self.batch_sampler, StepSampler):
            self.batch_sampler.set_epoch(epoch)


def _as_is(batch: Any) -> Any:
    return batch
