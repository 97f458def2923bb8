"""Caches with real numbers of real tiny models, right ones or with a fault in them; written by the cache's own writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tiny_references import plain_pairs, write_pairs

from mrpo_pipeline.cache import CompletionRow, ReferenceCache
from mrpo_pipeline.dataset.prepare import prepare_splits, renderer_of, wanted_completions
from mrpo_pipeline.engines import ScoringRequest, open_engine
from mrpo_pipeline.models.source import ModelSource, resolve
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.rendering import Rendered

Score = Callable[[list[ScoringRequest]], list[np.ndarray]]


def recipe_of(folder: Path, model: Path, *, pairs: int = 12, rows: list[Any] | None = None, **reference: Any) -> Recipe:
    """A recipe of one reference, ``base``, that is also the policy; its cache lies in the folder."""
    write_pairs(folder / "pairs.jsonl", plain_pairs(pairs) if rows is None else rows)
    return parse_recipe(
        {
            "pairs": {"train": str(folder / "pairs.jsonl")},
            "policy": {"model": str(model)},
            "references": {"base": {"model": str(model), **reference}},
            "cache": str(folder / "cache"),
            "limits": {"max_length": 400},
            "scoring": {"engine": "transformers"},
        }
    )


def wanted_of(recipe: Recipe) -> pl.DataFrame:
    return wanted_completions(list(prepare_splits(recipe).values()))


def by_transformers(source: ModelSource) -> Score:
    """Scores with the transformers engine, from the files of ``source``."""

    def score(requests: list[ScoringRequest]) -> list[np.ndarray]:
        engine = open_engine("transformers", source)
        try:
            found = dict(engine.score(requests))
        finally:
            engine.close()
        return [found[index] for index in range(len(requests))]

    return score


def plant(
    recipe: Recipe,
    *,
    score: Score | None = None,
    render: Callable[[list[tuple[str, str]]], list[Rendered]] | None = None,
    fed: Callable[[np.ndarray], np.ndarray] = lambda prompt: prompt,
    change: Callable[[int, CompletionRow], CompletionRow] = lambda place, row: row,
) -> ReferenceCache:
    """Fill the cache of ``base`` under the right fingerprint, with a fault where one is given.

    Args:
        score: what computes the numbers; the reference itself by the transformers engine where not given.
        render: what the text is read by; the reference's renderer where not given.
        fed: what the engine is given in place of the prompt's ids, without the row telling.
        change: the row that is written in place of the one computed.
    """
    (source,) = recipe.sources()
    renderer = renderer_of(source)
    wanted = wanted_of(recipe)
    rendered = (render or renderer.render)(list(wanted.select("prompt", "completion").iter_rows()))
    requests = [ScoringRequest(fed(one.prompt_ids), one.completion_ids) for one in rendered]
    logps = (score or by_transformers(source))(requests)
    cache = ReferenceCache.open(recipe.cache, "base")
    cache.create_or_check(resolve(source, renderer.identity()), {"engine": "planted", "versions": {"tests": "1"}})
    with cache.writer() as writer:
        for place, (identifier, one, numbers) in enumerate(zip(wanted["completion_id"], rendered, logps, strict=True)):
            row = CompletionRow(identifier, len(one.prompt_ids), one.completion_ids, numbers, one.byte_ends, True)
            writer.add(change(place, row))
    return cache
