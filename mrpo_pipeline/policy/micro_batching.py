"""How an optimizer step is split over processes and into micro-batches, limited by tokens or by pairs.

Packing changes padding and memory, never the loss: that is a sum over the step's pairs divided by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.dataset.completion_numbering import Distinct, pairs_by_prompt

Indices = npt.NDArray[np.int64]

# Larger micro-batches are no faster on a CPU, and take more memory.
CPU_TOKENS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """The number of tokens that a micro-batch runs through the model."""

    tokens: Indices
    """(N,) tokens of each pair: of its longer row, or of both sides with the prompt counted once if prompts are shared."""
    padded: bool
    """Whether a pair is two rows, padded to the longest row; otherwise one row without padding."""
    distinct: Distinct | None = None
    """For pairs grouped by prompt: shared prompts and completions count once."""

    def __call__(self, picked: Indices) -> int:
        if self.distinct is not None:
            longest = int(self.tokens[picked].max())
            return self.distinct.rows(picked) * longest if self.padded else self.distinct.tokens(picked)
        return int(2 * len(picked) * self.tokens[picked].max() if self.padded else self.tokens[picked].sum())


def token_limit(measure: Measure, size: int, setting: int | str, *, on_cpu: bool) -> int:
    """The most tokens of a micro-batch.

    Args:
        size: ``per_device_train_batch_size``. setting: ``micro_batch_tokens``, a number or ``auto``. on_cpu: limits ``auto`` to
            ``CPU_TOKENS``, except for pairs grouped by prompt, which cost more when split.
    """
    if isinstance(setting, int):
        return setting
    most = size * int(measure.tokens.max()) * (2 if measure.padded else 1)
    return min(most, CPU_TOKENS) if on_cpu and measure.distinct is None else most


def assign_to_ranks(units: Sequence[Indices], measure: Measure, world_size: int) -> list[list[Indices]]:
    """The units of each process, the longest first, assigned in alternating order to balance tokens."""
    tokens = np.array([measure.tokens[unit[0]] if len(unit) == 1 else measure(unit) for unit in units])
    ordered = np.argsort(-tokens, kind="stable")
    turns = np.arange(len(ordered)) % (2 * world_size)
    taker = np.minimum(turns, 2 * world_size - 1 - turns)
    return [[units[at] for at in ordered[taker == rank]] for rank in range(world_size)]


def micro_batches(
    step: Indices,
    measure: Measure,
    *,
    tokens: int | None,
    pairs: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    """One process's micro-batches of a step: pairs of similar length together, the longest first.

    Every process gets the same number of micro-batches, because all must take part in every forward pass. A process with too
    few pairs gets a pair of weight 0, written ``~index``.

    Pairs grouped by prompt stay on one process, up to its share of the step, and in one micro-batch if they fit.

    Args:
        step: the pairs of the step on all processes together.
        tokens: the most tokens of a micro-batch; a longer pair is a micro-batch of its own. None for no limit.
        pairs: the most pairs of a micro-batch; None for no limit.
    """
    parts = [
        _pack(own, measure, tokens, pairs)
        for own in assign_to_ranks(_units_of(step, measure, world_size), measure, world_size)
    ]
    count = max(len(part) for part in parts)
    own = parts[rank]
    while len(own) < count:
        largest = max(range(len(own)), key=lambda i: len(own[i]), default=0)
        if not own or len(own[largest]) < 2:
            own.append(np.array([~int(step[measure.tokens[step].argmin()])]))
        else:
            own[largest : largest + 1] = np.array_split(own[largest], 2)
    return [batch.tolist() for batch in own]


def _units_of(step: Indices, measure: Measure, world_size: int) -> list[Indices]:
    """What is assigned together: single pairs, or the pairs of a prompt."""
    if measure.distinct is None:
        return [step[at : at + 1] for at in range(len(step))]
    share = -(-len(step) // world_size)
    return [step[places] for places in pairs_by_prompt(measure.distinct.prompts[step], share)]


def _pack(own: Sequence[Indices], measure: Measure, tokens: int | None, pairs: int | None) -> list[Indices]:
    """Fill micro-batches with units in order; a unit that does not fit into one micro-batch is split into pairs."""

    def fits(batch: Indices) -> bool:
        return (pairs is None or len(batch) <= pairs) and (tokens is None or measure(batch) <= tokens)

    batches: list[Indices] = []
    for unit in own:
        for part in [unit] if fits(unit) else np.split(unit, len(unit)):
            if batches and fits(together := np.concatenate([batches[-1], part])):
                batches[-1] = together
            else:
                batches.append(part)
    return batches
