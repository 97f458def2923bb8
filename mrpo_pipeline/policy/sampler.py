"""Which pairs make up each optimizer step, and how a step is split into micro-batches.

The set of pairs of a step depends only on the seed, the epoch and the number of pairs per step (per-device batch ×
accumulation × processes). How the step is split, by a number of tokens that a micro-batch may hold, changes padding and
memory, never the loss: that is a sum over the step's pairs divided by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mrpo_pipeline.dataset.examples import Batch, PreferenceExamples
from mrpo_pipeline.pairs.counting import require_balance

Indices = npt.NDArray[np.int64]
Order = Literal["group_by_length", "random", "sequential"]

# Micro-batches beyond this gain a CPU nothing and cost memory.
CPU_TOKENS = 1024

# Steps whose pairs are sorted by length together. Many make batches even, few keep them mixed; transformers takes 50.
GROUPED_STEPS = 50


def epoch_steps(lengths: Indices, pairs_per_step: int, *, seed: int, epoch: int, order: Order) -> list[Indices]:
    """The pairs of every optimizer step of one epoch; the last step holds what is left over.

    ``random`` draws every pair. ``group_by_length`` draws them in groups of 50 steps, and sorts each group by length before
    cutting it into steps; then the steps are shuffled. With both, the step with the longest pair is the very first one, so
    that a run whose batches are too large for the memory ends at once. ``sequential`` keeps the pairs' order.

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


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """How many tokens a micro-batch runs through the model."""

    tokens: Indices
    """(N,) of each pair: of its longer row, or of all its tokens where the prompt is shared."""
    padded: bool
    """Two rows for each pair, all as long as the longest; else one row without padding."""

    def __call__(self, picked: Indices) -> int:
        return int(2 * len(picked) * self.tokens[picked].max() if self.padded else self.tokens[picked].sum())


def token_limit(measure: Measure, size: int, setting: int | str, *, on_cpu: bool) -> int:
    """How many tokens a micro-batch holds at most.

    Args:
        size: ``per_device_train_batch_size``. setting: ``micro_batch_tokens``, a number or ``auto``.
    """
    if isinstance(setting, int):
        return setting
    most = size * int(measure.tokens.max()) * (2 if measure.padded else 1)
    return min(most, CPU_TOKENS) if on_cpu else most


def deal_out(step: Indices, lengths: Indices, world_size: int) -> list[Indices]:
    """The pairs of each process, the longest first: dealt out to and fro, so that all have about as many tokens."""
    ordered = step[np.argsort(-lengths[step], kind="stable")]
    turns = np.arange(len(ordered)) % (2 * world_size)
    taker = np.minimum(turns, 2 * world_size - 1 - turns)
    return [ordered[taker == rank] for rank in range(world_size)]


def micro_batches(
    step: Indices,
    measure: Measure,
    *,
    tokens: int | None,
    pairs: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    """One process's micro-batches of a step: pairs of like length together, the longest first.

    Every process gets the same number of micro-batches. Where one has fewer pairs than that, it gets a pair of weight 0,
    written ``~index``, for all processes must take part in every forward pass.

    Args:
        step: the pairs of the step, on all processes together.
        tokens: what a micro-batch may hold; a pair that is longer stands alone. None for any number.
        pairs: the most pairs in a micro-batch; None for any number.
    """
    parts = [_fill(own, measure, tokens, pairs) for own in deal_out(step, measure.tokens, world_size)]
    count = max(len(part) for part in parts)
    own = parts[rank]
    while len(own) < count:
        largest = max(range(len(own)), key=lambda i: len(own[i]), default=0)
        if not own or len(own[largest]) < 2:
            own.append(np.array([~int(step[measure.tokens[step].argmin()])]))
        else:
            own[largest : largest + 1] = np.array_split(own[largest], 2)
    return [batch.tolist() for batch in own]


def _fill(own: Indices, measure: Measure, tokens: int | None, pairs: int | None) -> list[Indices]:
    batches: list[Indices] = []
    start = 0
    for end in range(1, len(own) + 1):
        full = pairs is not None and end - start >= pairs
        if end == len(own) or full or (tokens is not None and measure(own[start : end + 1]) > tokens):
            batches.append(own[start:end])
            start = end
    return batches


class StepSampler(Sampler[list[list[int]]]):
    """Every optimizer step of an epoch, as the micro-batches that one process computes for it.

    Args:
        size, accumulation: their product is the pairs of a step on one process.
        measure: asked at the start of each epoch, when it is known how the pairs are laid out; None for micro-batches of
            ``size`` pairs.
        tokens: of a micro-batch at most.
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
    ) -> None:
        self.lengths = lengths
        self.size, self.accumulation = size, accumulation
        self.rank, self.world_size = rank, world_size
        self.seed, self.order, self.drop_last = seed, order, drop_last
        self.measure, self.tokens = measure, tokens
        self.epoch = 0

    @property
    def pairs_per_step(self) -> int:
        return self.size * self.accumulation * self.world_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def steps(self, epoch: int | None = None) -> list[Indices]:
        """The pairs of every step of an epoch, or of the running one, on all processes together."""
        epoch = self.epoch if epoch is None else epoch
        steps = epoch_steps(self.lengths, self.pairs_per_step, seed=self.seed, epoch=epoch, order=self.order)
        kept, left = steps[: len(self)], steps[len(self) :]
        seen = sum(len(step) for step in kept)
        require_balance("an epoch's steps", len(self.lengths), seen, {"drop_last": sum(len(step) for step in left)})
        return kept

    def __iter__(self) -> Iterator[list[list[int]]]:
        measure = Measure(self.lengths, padded=True) if self.measure is None else self.measure()
        limits: dict[str, int | None] = {"tokens": None, "pairs": self.size}
        if self.tokens is not None:
            limits = {"tokens": self.tokens(measure), "pairs": None}
        for step in self.steps():
            yield micro_batches(step, measure, **limits, rank=self.rank, world_size=self.world_size)

    def __len__(self) -> int:
        steps, left = divmod(len(self.lengths), self.pairs_per_step)
        return steps + int(left > 0 and not self.drop_last)


class TrainingOrder:
    """The pairs of every step of a run, on all processes together; steps are counted from 0 over all epochs.

    It follows from the sampler's seed alone, so a resumed run and every process know the whole of it.
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
        """(T,) the pairs of all earlier steps, the last one last; a pair stands there once for each time."""
        self._reach(step)
        return self._pairs[: self._ends[step]]

    def _reach(self, steps: int) -> None:
        while len(self._ends) <= steps:
            epoch = self.sampler.steps((len(self._ends) - 1) // len(self.sampler))
            self._pairs = np.concatenate([self._pairs, *epoch])
            self._ends += (self._ends[-1] + np.cumsum([len(step) for step in epoch])).tolist()


class AllOnce(Sampler[list[int]]):
    """Every pair once, longest first, shared out between the processes: for evaluation."""

    def __init__(self, lengths: Indices, *, size: int, rank: int = 0, world_size: int = 1) -> None:
        pairs = np.arange(len(lengths))
        measure = Measure(lengths, padded=True)
        self.batches = micro_batches(pairs, measure, tokens=None, pairs=size, rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Steps(Dataset[list[Batch]]):
    """The same pairs, taken an optimizer step at a time."""

    def __init__(self, examples: PreferenceExamples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, step: Sequence[Sequence[int]]) -> list[Batch]:
        return [self.examples.__getitems__(batch) for batch in step]


class PairLoader(DataLoader[Batch]):
    """Batches of pairs, or steps of batches, each process its own.

    accelerate's loader is passed by: it would deal batches out to the processes a second time, and fill a short last one
    up with pairs that were seen already.
    """

    def __init__(self, examples: PreferenceExamples | Steps, sampler: Iterable[Any], **options: Any) -> None:
        # Its own generator: the torch generator feeds the adapter's dropout, and must not depend on how often the pairs
        # are looked at.
        options.setdefault("generator", torch.Generator())
        super().__init__(examples, batch_sampler=sampler, collate_fn=_as_is, **options)  # type: ignore[arg-type]

    @classmethod
    def of(cls, examples: PreferenceExamples | Steps, sampler: Iterable[Any], arguments: Any) -> PairLoader:
        """With workers and pinned memory as ``transformers.TrainingArguments`` have it."""
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
