"""Caches with log-probs of real tiny models, correct or with a planted fault, written by the cache's writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tiny_references import plain_pairs, write_pairs

from mrpo_pipeline.cache import CompletionRow, ReferenceCache
from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
from mrpo_pipeline.engines import ScoringRequest, open_engine
from mrpo_pipeline.models.source import ModelSource, resolve
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.rendering import Rendered, Renderer

Score = Callable[[list[ScoringRequest]], list[np.ndarray]]


def recipe_of(folder: Path, model: Path, *, pairs: int = 12, rows: list[Any] | None = None, **reference: Any) -> Recipe:
    """A recipe of one reference, ``base``, that is also the policy; its cache is in the folder."""
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
    """Score with the transformers engine."""

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
    """Fill the cache of ``base`` under the correct fingerprint, with an optional fault.

    Args:
        score: computes the log-probs; by default the reference with the transformers engine.
        render: renders the text; by default the reference's renderer.
        fed: changes the prompt ids for the engine only, not in the row.
        change: changes a computed row.
    """
    (source,) = recipe.sources()
    renderer = Renderer.of(source)
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
