"""The completions of the sampled prompts, their tokens by one tokenizer, and their bytes in the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.cache.schema import CompletionRow, encode_shard, rows_to_table
from mrpo_pipeline.dataset.prepare import wanted_completions
from mrpo_pipeline.dataset.truncate import Prepared
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.extrapolation import SIDES, Estimate, Extrapolation
from mrpo_pipeline.plan.result import DataPlan, SplitPlan
from mrpo_pipeline.plan.sampling import Population
from mrpo_pipeline.rendering import Renderer, tokens_to_score
from mrpo_pipeline.terminal import track

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

RENDER_BATCH = 2048
ENCODED_BYTES = 16 << 20  # of text: of more, only some of the shards are encoded

# zstd's bytes of a float32 log-prob; low mantissa bits do not compress. 3.58 for trained models of 135 and 270 million parameters on
# English text, 3.25 for untrained ones, up to 3.75 in shards of a few thousand tokens.
LOGP_BYTES = 3.55
LOGP_BYTES_ERROR = 0.3


@dataclass(frozen=True)
class Completions:
    """Distinct completions of the sampled prompts (columns of ``prepare.wanted_completions``), and totals over all."""

    frame: pl.DataFrame
    everyone: Extrapolation

    @classmethod
    def of(cls, population: Population, prepared: dict[str, Prepared]) -> Completions:
        frame = wanted_completions(list(prepared.values()))
        # Two prompts may be equal after truncation: a completion counts for the first.
        owners = pl.concat(
            part.frame.select(pl.col(f"{side}_id").alias("completion_id"), pl.col("prompt").alias("owner"))
            for part in prepared.values()
            for side in SIDES
        ).unique("completion_id", keep="first", maintain_order=True)
        joined = frame.select("completion_id").join(owners, on="completion_id", maintain_order="left")
        return cls(frame, population.completions(joined["owner"]))


@dataclass(frozen=True)
class Lengths:
    """Tokens by one tokenizer.

    Attributes:
        prompts: (N,) of the prompt, and of context between the completion's messages.
        tokens: (N,) scored tokens of the completion; 0 where it is not to be scored, or the template can't render it.
        rows: the rows of some shards by their index, log-probs 0.
    """

    prompts: Counts
    tokens: Counts
    rows: dict[int, CompletionRow]

    @property
    def together(self) -> Counts:
        """(N,) tokens of prompt and completion."""
        return self.prompts + self.tokens


def measure_lengths(
    renderer: Renderer, frame: pl.DataFrame, missing: Mask, *, rows_per_shard: int, name: str, skip: bool
) -> Lengths:
    """Render the missing completions, longest first, in the order in which scoring fills shards.

    Args:
        frame: columns of ``prepare.wanted_completions``. missing: (N,) rows to render.
        name: of the reference, for the progress line.
        skip: leave out completions that the template can't render.

    Raises:
        UserError: for such a completion, unless ``skip``.
    """
    lengths = Lengths(np.zeros(frame.height, np.int64), np.zeros(frame.height, np.int64), {})
    sizes = frame.select(pl.col("prompt").str.len_bytes() + pl.col("completion").str.len_bytes()).to_series().to_numpy()
    places = np.argsort(-sizes.astype(np.int64), kind="stable")
    places = places[missing[places]]
    every = max(1, int(sizes[places].sum()) // ENCODED_BYTES)
    with track(f"tokenizing completions for {name}", len(places), "completions") as progress:
        for start in range(0, len(places), RENDER_BATCH):
            some = places[start : start + RENDER_BATCH]
            batch = frame[some]
            rendered = renderer.render_each(list(batch.select("prompt", "completion").iter_rows()))
            keys = batch.select("completion_id", "cut").iter_rows()
            for at, (place, (identifier, cut), one) in enumerate(zip(some, keys, rendered, strict=True), start):
                if isinstance(one, UserError):
                    if not skip:
                        raise one
                    continue
                count = tokens_to_score(one.scored_ends, cut)
                context = len(one.beginning(count).completion_ids) - count
                lengths.prompts[place], lengths.tokens[place] = len(one.prompt_ids) + context, count
                if at // rows_per_shard % every == 0:
                    lengths.rows[int(place)] = CompletionRow(
                        identifier, len(one.prompt_ids), one.scored_ids[:count], np.zeros(count, np.float32),
                        one.scored_ends[:count], count == len(one.scored_ids),
                    )  # fmt: skip
            progress.advance(len(some))
    return lengths


def cache_bytes(tokens: Estimate, rows: list[CompletionRow], rows_per_shard: int) -> Estimate:
    """Bytes of shards for these completion tokens, by rows that are encoded as the writer does it and ``LOGP_BYTES``."""
    if not rows:
        return Estimate(0)
    shards = [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]
    encoded = sum(encode_shard(rows_to_table(shard)).size for shard in shards)
    each = LOGP_BYTES + encoded / sum(len(row.token_ids) for row in rows)
    return Estimate(tokens.value * each, math.hypot(tokens.value * LOGP_BYTES_ERROR, tokens.error * each))


def readable(frame: pl.DataFrame, unfit: set[str]) -> pl.DataFrame:
    """The prepared pairs that have none of these completions."""
    excluded = pl.Series(sorted(unfit), dtype=pl.String).implode()
    return frame.filter(~pl.any_horizontal(pl.col(f"{side}_id").is_in(excluded) for side in SIDES)) if unfit else frame


def describe_data(population: Population, prepared: dict[str, Prepared], completions: Completions) -> DataPlan:
    """Counts of the data; rows, pairs and prompts are exact."""
    splits = {}
    for name, frame in population.splits.items():
        part, pairs = prepared[name].counts, frame.height
        seen = part.read
        lost = _scaled(sum(part.dropped.values()), seen, pairs)
        splits[name] = SplitPlan(
            pairs,
            Estimate(pairs - lost.value, lost.error),
            {reason: _scaled(count, seen, pairs) for reason, count in part.dropped.items()},
            _scaled(part.cut_prompts, seen, pairs),
            _scaled(part.cut_completions, 2 * seen, 2 * pairs),
        )
    return DataPlan(
        rows=population.rows,
        bad_rows=population.skipped,
        notices=population.notices,
        prompts=pl.concat([frame["prompt"] for frame in population.splits.values()]).n_unique(),
        pairs=sum(split.pairs for split in splits.values()),
        splits=splits,
        completions=completions.everyone.count(np.ones(completions.frame.height, dtype=bool)),
        sampled_share=1 / population.step,
        sampled_pairs=sum(part.counts.read for part in prepared.values()),
    )


def _scaled(count: int, seen: int, everyone: int) -> Estimate:
    """A count in a sample of ``seen`` pairs scaled to all; its error is that of a share (normal approximation)."""
    if seen in (0, everyone):
        return Estimate(count)
    share = count / seen
    return Estimate(everyone * share, everyone * 1.96 * (share * (1 - share) / seen * (1 - seen / everyone)) ** 0.5)
