"""The completions that references have to score: those of the sampled prompts, and how they stand for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.dataset.prepare import Prepared, prepare, wanted_completions
from mrpo_pipeline.pairs.read import OnBadRow
from mrpo_pipeline.plan.estimate import Estimate, Expansion
from mrpo_pipeline.plan.report import DataPlan, SplitPlan
from mrpo_pipeline.plan.sampling import Population
from mrpo_pipeline.recipe import Limits
from mrpo_pipeline.rendering import Renderer

SIDES = ("chosen", "rejected")
# Bytes of prompt and completion, and of the completion alone.
TEXT, COMPLETION = "text", "completion"


@dataclass
class Wanted:
    """Completions of the sample, columns of ``prepare.wanted_completions``, each once."""

    frame: pl.DataFrame
    _expansion: Expansion
    _places: npt.NDArray[np.int64]  # of each unit of the expansion: the row of `frame` it stands for, or -1

    @property
    def is_sample(self) -> bool:
        """Whether ``frame`` stands for more than itself."""
        return self._expansion.share < 1

    def total(self, values: npt.NDArray[np.float64], by: str | None = TEXT) -> Estimate:
        """Σ over all completions of the run, from the values of those in ``frame``.

        Args:
            by: what the values are about in proportion to: ``TEXT``, ``COMPLETION``, or None for nothing.
        """
        if self._expansion.share >= 1:
            return Estimate(float(values.sum()))
        units = np.where(self._places >= 0, np.append(values, 0.0)[self._places], 0.0)
        return self._expansion.total(units, by)

    def count(self, hits: npt.NDArray[np.bool_]) -> Estimate:
        """How many of all completions are like those that are marked."""
        return self.total(hits.astype(np.float64), None)


def prepare_population(
    population: Population,
    renderer: Renderer,
    limits: Limits,
    on_bad_row: OnBadRow = "error",
    refuse_rendered: bool = True,
) -> tuple[dict[str, Prepared], dict[str, Prepared]]:
    """The sampled pairs of every split, and the longest training pairs, cut and tokenized as a run would do it."""
    options: Any = {"on_bad_row": on_bad_row, "refuse_rendered": refuse_rendered}
    sampled = {
        name: prepare(split.table(split.sample), renderer, limits, what=f"{name} pairs", **options)
        for name, split in population.splits.items()
    }
    longest = {}
    train = population.splits.get("train")
    if train is not None:
        longest["train"] = (
            sampled["train"]
            if population.share >= 1
            else prepare(train.table(train.longest), renderer, limits, what="the longest pairs", **options)
        )
    return sampled, longest


def wanted_of(population: Population, prepared: dict[str, Prepared]) -> Wanted:
    """The distinct completions of all splits."""
    frame = wanted_completions(list(prepared.values()))
    if population.share >= 1:
        nothing = np.zeros(0)
        everything = Expansion({TEXT: nothing}, nothing.astype(np.uint64), {TEXT: nothing}, 1.0)
        return Wanted(frame, everything, np.zeros(0, np.int64))
    raw = _units([split.sample for split in population.splits.values()], texts=True)
    everyone = _units([split.numbers for split in population.splits.values()])
    named = pl.concat(
        part.frame.select("prompt", pl.col(side).alias("completion"), pl.col(f"{side}_id").alias("completion_id"))
        for part in prepared.values()
        for side in SIDES
    ).unique(["prompt", "completion"])
    # Two texts may be one completion once their prompts are cut: it is counted with the first.
    rows = (
        raw.join(named, on=["prompt", "completion"], how="left", maintain_order="left")
        .join(
            frame.select("completion_id").with_row_index("place"), on="completion_id", how="left", maintain_order="left"
        )
        .with_columns(first=pl.col("completion_id").is_first_distinct())
    )
    places = rows.select(pl.when("first").then(pl.col("place").cast(pl.Int64)).otherwise(-1).fill_null(-1)).to_series()
    sizes, totals = ({name: one[f"{name}_bytes"].to_numpy() for name in (TEXT, COMPLETION)} for one in (raw, everyone))
    expansion = Expansion(sizes, raw["prompt_key"].to_numpy(), totals, population.share)
    return Wanted(frame, expansion, places.to_numpy())


def pair_expansion(population: Population, split: str) -> Expansion:
    """From the sampled pairs of a split to all of them, by the bytes of both rows of a pair."""
    size = (2 * pl.col("prompt_bytes") + pl.col("chosen_bytes") + pl.col("rejected_bytes")).alias("size")
    part = population.splits[split]
    sizes, totals = ({"rows": one.select(size).to_series().to_numpy()} for one in (part.sample, part.numbers))
    return Expansion(sizes, part.sample["prompt_key"].to_numpy(), totals, population.share)


def describe_data(population: Population, prepared: dict[str, Prepared], wanted: Wanted) -> DataPlan:
    """Counts of the data: those of rows, pairs and prompts are exact."""
    splits = {}
    for name, split in population.splits.items():
        part, pairs, seen = prepared[name], split.numbers.height, split.sample.height
        dropped = {reason: _scaled(count, seen, pairs) for reason, count in part.dropped.items()}
        lost = _scaled(sum(part.dropped.values()), seen, pairs)
        splits[name] = SplitPlan(
            pairs,
            Estimate(pairs - lost.value, lost.error),
            dropped,
            _scaled(part.cut_prompts, seen, pairs),
            _scaled(part.cut_completions, 2 * seen, 2 * pairs),
        )
    keys = pl.concat([split.numbers["prompt_key"] for split in population.splits.values()])
    return DataPlan(
        rows=population.rows,
        bad_rows=population.skipped,
        notices=population.notices,
        prompts=keys.n_unique(),
        pairs=sum(split.pairs for split in splits.values()),
        splits=splits,
        completions=wanted.count(np.ones(wanted.frame.height, dtype=bool)),
        sampled_share=population.share,
        sampled_pairs=sum(split.sample.height for split in population.splits.values()),
    )


def kept_rows(sample: pl.DataFrame, prepared: Prepared) -> npt.NDArray[np.int64]:
    """(n,) of each sampled pair the row of ``prepared.frame`` it became, -1 where it was dropped."""
    place = ["file", "row", "pair_in_row"]
    # In parts of one file rows are counted from each part's first: the pair's own name tells them apart.
    rows = prepared.frame.select(*place, "pair_id").with_row_index("at").unique([*place, "pair_id"], keep="first")
    joined = sample.join(rows, on=[*place, "pair_id"], how="left", maintain_order="left")
    return joined["at"].cast(pl.Int64).fill_null(-1).to_numpy()


def _units(frames: list[pl.DataFrame], *, texts: bool = False) -> pl.DataFrame:
    """Distinct completions: ``key``, ``prompt_key``, ``text_bytes``, ``completion_bytes``, and their texts."""
    sides = [
        frame.select(
            pl.col(f"{side}_key").alias("key"),
            "prompt_key",
            (pl.col("prompt_bytes") + pl.col(f"{side}_bytes")).cast(pl.Float64).alias(f"{TEXT}_bytes"),
            pl.col(f"{side}_bytes").cast(pl.Float64).alias(f"{COMPLETION}_bytes"),
            *([pl.col("prompt"), pl.col(side).alias("completion")] if texts else []),
        )
        for frame in frames
        for side in SIDES
    ]
    return pl.concat(sides).unique("key", keep="first", maintain_order=texts)


def _scaled(count: int, seen: int, everyone: int) -> Estimate:
    """A count in a sample of ``seen``, scaled up; its error as that of a share (normal approximation)."""
    if seen in (0, everyone):
        return Estimate(count)
    share = count / seen
    error = 1.96 * (share * (1 - share) / seen * (1 - seen / everyone)) ** 0.5
    return Estimate(everyone * share, everyone * error)
