"""How long the completions that are left to score are, as one tokenizer reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.cache_bytes import ENCODED_TOKENS, RowToScore
from mrpo_pipeline.rendering import Renderer, tokens_to_score
from mrpo_pipeline.terminal import track

RENDER_BATCH = 2048
_BYTES_PER_TOKEN = 4  # of text, about: only to choose how many shards are kept


@dataclass(frozen=True)
class Lengths:
    """Completions to score, the longest text first, as stage one takes them.

    ``places`` (n,): their rows in the frame of wanted completions; ``prompts``, ``tokens`` (n,): tokens of the prompt
    and of the context between the completion's messages, and those of the completion that are scored, 0 where the template does
    not write it; ``rows``: every so many-th shard of them whole, for their bytes.
    """

    places: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    rows: list[tuple[int, RowToScore]]

    @property
    def written(self) -> npt.NDArray[np.bool_]:
        """(n,) which of them the template writes."""
        return self.tokens > 0

    @property
    def whole(self) -> npt.NDArray[np.int64]:
        """(n,) tokens of prompt and completion."""
        return self.prompts + self.tokens


def measure_lengths(
    renderer: Renderer,
    frame: pl.DataFrame,
    missing: npt.NDArray[np.bool_],
    *,
    rows_per_shard: int,
    name: str,
    skip: bool = False,
) -> Lengths:
    """Render what is missing.

    Args:
        frame: columns of ``prepare.wanted_completions``. missing: (N,) which of its rows.
        name: of the reference, for the progress line.
        skip: whether completions that the template does not write are left out.

    Raises:
        UserError: for such a completion, where it is not.
    """
    size = pl.col("prompt").str.len_bytes() + pl.col("completion").str.len_bytes()
    ordered = (
        frame.with_row_index("place")
        .filter(pl.Series(missing))
        .with_columns(size.alias("size"))
        .sort("size", descending=True, maintain_order=True)
    )
    every = max(1, int(ordered["size"].sum()) // _BYTES_PER_TOKEN // ENCODED_TOKENS)
    prompts, tokens = np.zeros(ordered.height, np.int64), np.zeros(ordered.height, np.int64)
    rows: list[tuple[int, RowToScore]] = []
    with track(f"reading completions as {name}", ordered.height, "completions") as progress:
        for start in range(0, ordered.height, RENDER_BATCH):
            batch = ordered.slice(start, RENDER_BATCH)
            rendered = renderer.render_each(list(batch.select("prompt", "completion").iter_rows()))
            keys = batch.select("completion_id", "cut").iter_rows()
            for at, ((identifier, cut), sides) in enumerate(zip(keys, rendered, strict=True), start):
                if isinstance(sides, UserError):
                    if not skip:
                        raise sides
                    continue
                count = tokens_to_score(sides.scored_ends, cut)
                context = len(sides.beginning(count).completion_ids) - count
                prompts[at], tokens[at] = len(sides.prompt_ids) + context, count
                if at // rows_per_shard % every == 0:
                    ids, ends = sides.scored_ids[:count], sides.scored_ends[:count]
                    complete = count == len(sides.scored_ids)
                    rows.append((at, RowToScore(identifier, len(sides.prompt_ids), ids, ends, complete)))
            progress.advance(batch.height)
    return Lengths(ordered["place"].cast(pl.Int64).to_numpy(), prompts, tokens, rows)
