"""All pairs of a run, and the prompts whose text is tokenized."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import polars as pl

from mrpo_pipeline.dataset.prepare import hold_out, read_tables
from mrpo_pipeline.pairs import PairTable
from mrpo_pipeline.plan.extrapolation import SIDES, Extrapolation, sampled
from mrpo_pipeline.recipe import Pairs

# Rendering takes about 1.2 ms of one core a pair of 1.6 kB, for every tokenizer. Up to so much is counted; of more, a sample of
# about half that.
MOST_PAIRS = 5_000
MOST_BYTES = 8_000_000
FEWEST_PROMPTS = 200  # however long they are: of fewer, a sample says little
LONGEST = 32  # pairs that are tokenized whatever the sample, for the memory that the longest batch takes

_BYTES = {name: pl.col(name).str.len_bytes().cast(pl.Int64) for name in ("prompt", *SIDES)}


@dataclass(frozen=True)
class Population:
    """The data of a run.

    Attributes:
        splits: every pair of each split, columns of ``PairTable.frame``.
        step: every so many-th prompt is tokenized.
        rows: of the files. skipped: rows that were left out, by reason. notices: how files were read.
    """

    splits: dict[str, pl.DataFrame]
    step: int
    rows: int
    skipped: dict[str, int]
    notices: tuple[str, ...]

    def sample(self, split: str) -> pl.DataFrame:
        """The pairs of the sampled prompts; all pairs where everything is counted."""
        return sampled(self.splits[split], self.step)

    def longest(self, split: str) -> pl.DataFrame:
        """The longest pairs, by the bytes of their longer side with the prompt."""
        length = _BYTES["prompt"] + pl.max_horizontal(_BYTES["chosen"], _BYTES["rejected"])
        return self.splits[split].top_k(LONGEST, by=length)

    def completions(self, prompts: pl.Series) -> Extrapolation:
        """From completions of these prompts to the distinct completions of all splits."""
        return Extrapolation(self.splits.values(), self.step, prompts, distinct=True)

    def pairs(self, split: str, prompts: pl.Series) -> Extrapolation:
        """From pairs of these prompts to all pairs of the split; each counts as two completions."""
        return Extrapolation([self.splits[split]], self.step, prompts, distinct=False)


def read_population(settings: Pairs, *, exact: bool = False) -> Population:
    """Read every pair.

    Args:
        exact: tokenize every pair, however many there are.

    Raises:
        UserError: see ``prepare.read_tables`` and ``prepare.hold_out``.
    """
    tables = read_tables(settings)
    splits = {name: table.frame for name, table in hold_out(settings, tables).items()}
    step = 1 if exact else _step(splits)
    skipped, noted, readings = (
        dict(sum((Counter(getattr(table, name)) for table in tables.values()), Counter()))
        for name in ("skipped", "noted", "readings")
    )
    read = PairTable(pl.DataFrame(), noted=noted, readings=readings)
    return Population(
        splits, step, sum(table.rows for table in tables.values()), skipped, (*read.read_as, *read.notices)
    )


def _step(splits: dict[str, pl.DataFrame]) -> int:
    frames = splits.values()
    size = sum(int(frame.select(pl.sum_horizontal(_BYTES.values()).sum()).item()) for frame in frames)
    wanted = math.ceil(max(sum(frame.height for frame in frames) / MOST_PAIRS, size / MOST_BYTES))
    # The tokens of training are those of its own prompts.
    prompts = [splits["train"]] if "train" in splits else frames
    return max(
        1, min(1 if wanted <= 1 else 2 * wanted, sum(frame["prompt"].n_unique() for frame in prompts) // FEWEST_PROMPTS)
    )
