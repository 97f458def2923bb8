"""The pairs of a run, and the sample of prompts that is tokenized."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import polars as pl

from mrpo_pipeline.dataset.prepare import hold_out, read_tables
from mrpo_pipeline.pairs import PairTable
from mrpo_pipeline.plan.extrapolation import SIDES, Extrapolation, sampled
from mrpo_pipeline.recipe import Pairs

# Rendering takes about 1.2 ms of one core per pair of 1.6 kB and tokenizer. More than this is sampled, down to about half of it.
MAX_PAIRS = 5_000
MAX_BYTES = 8_000_000
MIN_PROMPTS = 200  # of a sample, however long they are
LONGEST = 32  # pairs that are tokenized in any case, for the memory of the longest batch

_BYTES = {name: pl.col(name).str.len_bytes().cast(pl.Int64) for name in ("prompt", *SIDES)}


@dataclass(frozen=True)
class Population:
    """The data of a run.

    Attributes:
        splits: all pairs of each split, columns of ``PairTable.frame``.
        step: one prompt in this many is tokenized.
        rows: of the files. skipped: bad rows by reason. notices: how files were read.
    """

    splits: dict[str, pl.DataFrame]
    step: int
    rows: int
    skipped: dict[str, int]
    notices: tuple[str, ...]

    def sample(self, split: str) -> pl.DataFrame:
        """The pairs of the sampled prompts; all pairs where the step is 1."""
        return sampled(self.splits[split], self.step)

    def longest(self, split: str) -> pl.DataFrame:
        """All pairs of the prompts that have the ``LONGEST`` longest pairs, by bytes of the prompt and the longer side."""
        length = _BYTES["prompt"] + pl.max_horizontal(_BYTES["chosen"], _BYTES["rejected"])
        pairs = self.splits[split]
        return pairs.join(pairs.top_k(LONGEST, by=length), on="prompt", how="semi", maintain_order="left")

    def completions(self, prompts: pl.Series) -> Extrapolation:
        """Totals over the distinct completions of all splits, from those of these prompts."""
        return Extrapolation(self.splits.values(), self.step, prompts, distinct=True)

    def pairs(self, split: str, prompts: pl.Series) -> Extrapolation:
        """Totals over all pairs of the split, from those of these prompts."""
        return Extrapolation([self.splits[split]], self.step, prompts, distinct=False)


def read_population(settings: Pairs, *, exact: bool = False) -> Population:
    """Read every pair.

    Args:
        exact: no sample: tokenize every pair.

    Raises:
        UserError: see ``prepare.read_tables`` and ``prepare.hold_out``.
    """
    tables = read_tables(settings)
    splits = {name: table.frame for name, table in hold_out(settings, tables).items()}
    step = 1 if exact else _step(splits)
    skipped, noted, readings = (
        dict(sum((Counter(getattr(table, name)) for table in tables.values()), Counter()))
        for name in ("skipped", "notice_counts", "reading_counts")
    )
    read = PairTable(pl.DataFrame(), notice_counts=noted, reading_counts=readings)
    return Population(
        splits, step, sum(table.rows for table in tables.values()), skipped, (*read.read_as, *read.notices)
    )


def _step(splits: dict[str, pl.DataFrame]) -> int:
    frames = splits.values()
    size = sum(int(frame.select(pl.sum_horizontal(_BYTES.values()).sum()).item()) for frame in frames)
    excess = math.ceil(max(sum(frame.height for frame in frames) / MAX_PAIRS, size / MAX_BYTES))
    # Training tokens are estimated from the training prompts alone.
    prompts = [splits["train"]] if "train" in splits else frames
    return max(
        1, min(1 if excess <= 1 else 2 * excess, sum(frame["prompt"].n_unique() for frame in prompts) // MIN_PROMPTS)
    )
