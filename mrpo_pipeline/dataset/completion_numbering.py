"""Prompts and completions that pairs share, by the policy's tokens: ranked answers make many pairs of a few completions."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.ragged_ids import IdRows

Numbers = npt.NDArray[np.int64]

# Pairs count as ranked answers from this many sides per distinct completion on: three ranked answers have 2, and one best
# answer against three others 1.5.
RANKED = 1.5


@dataclass(frozen=True, eq=False)
class Distinct:
    """The distinct prompts and completions of N pairs."""

    numbers: Numbers
    """(N, 3): the number of each pair's prompt, in the order of the pairs, and of its chosen and rejected completion. Completions of
    different prompts have different numbers."""
    tokens_of: Numbers
    """(N, 3): number of tokens of each."""

    @classmethod
    def of(cls, examples: PreferenceExamples) -> Distinct:
        prompts: dict[Hashable, int] = {}
        completions: dict[Hashable, int] = {}
        numbers = np.empty((len(examples), 3), dtype=np.int64)
        for at in range(len(examples)):
            # A pair whose sides begin with different tokens has an empty prompt, which it shares with no other pair.
            prompt = examples.prompt_ids[at].tobytes() or at
            number = numbers[at, 0] = prompts.setdefault(prompt, len(prompts))
            for place, side in enumerate(("chosen", "rejected"), 1):
                key = (int(number), getattr(examples, f"{side}_ids")[at].tobytes(), _mask(examples, side, at))
                numbers[at, place] = completions.setdefault(key, len(completions))
        lengths = (examples.prompt_lengths, examples.chosen_lengths, examples.rejected_lengths)
        return cls(numbers, np.stack(lengths, axis=1))

    @classmethod
    def concat(cls, parts: Sequence[Distinct]) -> Distinct:
        """The parts' pairs one after another; prompts and completions of different parts count as different."""
        starts = np.cumsum([0, *(part.numbers.max(initial=-1) + 1 for part in parts[:-1])])
        numbers = [part.numbers + start for part, start in zip(parts, starts, strict=True)]
        return cls(np.concatenate(numbers), np.concatenate([part.tokens_of for part in parts]))

    def pick(self, picked: Numbers) -> Distinct:
        """Some of the pairs."""
        return Distinct(self.numbers[picked], self.tokens_of[picked])

    def firsts(self) -> npt.NDArray[np.bool_]:
        """(N, 3): True where a prompt or completion is in no earlier pair, nor on the chosen side of its own."""
        first = np.zeros(self.numbers.shape, dtype=np.bool_)
        first[np.unique(self.numbers[:, 0], return_index=True)[1], 0] = True
        first[:, 1:].flat[np.unique(self.numbers[:, 1:], return_index=True)[1]] = True
        return first

    @property
    def prompts(self) -> Numbers:
        """(N,) the number of each pair's prompt."""
        return self.numbers[:, 0]

    def tokens(self, picked: Numbers) -> int:
        """Tokens of some pairs, counting every prompt and completion once."""
        numbers, tokens = self.numbers[picked], self.tokens_of[picked]
        prompts = np.unique(numbers[:, 0], return_index=True)[1]
        completions = np.unique(numbers[:, 1:], return_index=True)[1]
        return int(tokens[prompts, 0].sum() + tokens[:, 1:].ravel()[completions].sum())

    def rows(self, picked: Numbers) -> int:
        """Number of distinct completions of some pairs."""
        return len(np.unique(self.numbers[picked, 1:]))


def _mask(examples: PreferenceExamples, side: str, at: int) -> bytes:
    rows: Sequence[Any] | None = getattr(examples, f"{side}_scored")
    return b"" if rows is None else np.asarray(rows[at], dtype=np.bool_).tobytes()


def is_ranked(examples: PreferenceExamples) -> bool:
    """Whether completions are in ``RANKED`` sides of pairs on average, or more."""
    return of_ranked(examples) is not None


def of_ranked(examples: PreferenceExamples) -> Distinct | None:
    """The distinct prompts and completions of ranked answers; None for pairs that are not ranked."""
    if len(examples) < RANKED * _fewest_prompts(IdRows.of(examples.prompt_ids)):
        return None
    distinct = Distinct.of(examples)
    return distinct if 2 * len(examples) >= RANKED * distinct.rows(np.arange(len(examples))) else None


def _fewest_prompts(rows: IdRows) -> int:
    """A lower bound of the distinct prompts, from their lengths and last tokens: a fraction of a second for a million."""
    if not len(rows.flat):
        return len(rows)  # no shared prompt
    ends = np.cumsum(rows.lengths)
    keys = rows.lengths.astype(np.uint64)
    for back in range(1, 17):
        tokens = rows.flat[np.minimum(ends - np.minimum(back, rows.lengths), len(rows.flat) - 1)]
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + tokens.astype(np.uint64)
    return len(np.unique(keys))


def pairs_by_prompt(prompts: Numbers, most: int) -> list[Numbers]:
    """The pairs of each prompt together, in their order, in pieces of at most ``most`` pairs."""
    order = np.argsort(prompts, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(prompts[order])) + 1) if len(order) else []
    return [group[start : start + most] for group in groups for start in range(0, len(group), most)]
