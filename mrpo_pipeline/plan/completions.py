"""The completions that references have to score: those of the sampled prompts, and what one tokenizer makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.cache.schema import CompletionRow, encode_shard, rows_to_table
from mrpo_pipeline.dataset.prepare import Prepared, wanted_completions
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.extrapolation import SIDES, Estimate, Extrapolation
from mrpo_pipeline.plan.result import DataPlan, SplitPlan
from mrpo_pipeline.plan.sampling import Population
from mrpo_pipeline.rendering import Renderer, tokens_to_score
from mrpo_pipeline.terminal import track

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

RENDER_BATCH = 2048
ENCODED_BYTES = 16 << 20  # of text: of more, every so many-th shard is encoded

# Bytes that zstd leaves of a float32 log-prob: the low mantissa bits never compress. 3.58 were measured for trained models of 135 and
# 270 million parameters on English text, 3.25 for untrained ones, up to 3.75 in shards of a few thousand tokens.
LOGP_BYTES = 3.55
LOGP_BYTES_ERROR = 0.3


@dataclass(frozen=True)
class Completions:
    """Completions of the sampled prompts, each once: columns of ``prepare.wanted_completions``, and how they count for all."""

    frame: pl.DataFrame
    everyone: Extrapolation

    @classmethod
    def of(cls, population: Population, prepared: dict[str, Prepared]) -> Completions:
        frame = wanted_completions(list(prepared.values()))
        # Two prompts may be one once they are cut: a completion counts for the first.
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

    ``prompts``, ``tokens`` (N,): of the prompt with the context between the completion's messages, and of the completion as far as
    it is scored; 0 where it is not to be scored, or the template does not write it. ``rows``: whole shards of them, by their place,
    log-probs 0.
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
    """Render what is missing, the longest text first: so are shards filled, and texts of like length repeat each other.

    Args:
        frame: columns of ``prepare.wanted_completions``. missing: (N,) which of its rows.
        name: of the reference, for the progress line.
        skip: whether completions that the template does not write are left out.

    Raises:
        UserError: for such a completion, where it is not.
    """
    lengths = Lengths(np.zeros(frame.height, np.int64), np.zeros(frame.height, np.int64), {})
    sizes = frame.select(pl.col("prompt").str.len_bytes() + pl.col("completion").str.len_bytes()).to_series().to_numpy()
    places = np.argsort(-sizes.astype(np.int64), kind="stable")
    places = places[missing[places]]
    every = max(1, int(sizes[places].sum()) // ENCODED_BYTES)
    with track(f"reading completions as {name}", len(places), "completions") as progress:
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


def bytes_per_token(rows: list[CompletionRow], rows_per_shard: int) -> float:
    """Bytes of shards for each completion token: the rows encoded as the writer does it, and what log-probs were measured to take."""
    shards = [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]
    size: int = sum(encode_shard(rows_to_table(shard)).size for shard in shards)
    return LOGP_BYTES + size / sum(len(row.token_ids) for row in rows)


def readable(frame: pl.DataFrame, unfit: set[str]) -> pl.DataFrame:
    """The prepared pairs without those of which a side is one of these completions."""
    away = pl.Series(sorted(unfit), dtype=pl.String).implode()
    return frame.filter(~pl.any_horizontal(pl.col(f"{side}_id").is_in(away) for side in SIDES)) if unfit else frame


def describe_data(population: Population, prepared: dict[str, Prepared], completions: Completions) -> DataPlan:
    """Counts of the data: those of rows, pairs and prompts are exact."""
    splits = {}
    for name, frame in population.splits.items():
        part, seen, pairs = prepared[name], prepared[name].pairs_in, frame.height
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
        sampled_pairs=sum(part.pairs_in for part in prepared.values()),
    )


def _scaled(count: int, seen: int, everyone: int) -> Estimate:
    """A count in a sample of ``seen``, scaled up; its error as that of a share (normal approximation)."""
    if seen in (0, everyone):
        return Estimate(count)
    share = count / seen
    return Estimate(everyone * share, everyone * 1.96 * (share * (1 - share) / seen * (1 - seen / everyone)) ** 0.5)
