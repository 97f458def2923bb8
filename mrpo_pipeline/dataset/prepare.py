"""Read a recipe's pairs, split them, cut and tokenize them, and cache the result for large files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

import mrpo_pipeline
from mrpo_pipeline.dataset import prepared_cache
from mrpo_pipeline.dataset.truncate import Prepared, prepare
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.pairs import PairTable, read_pairs, split_by_prompt
from mrpo_pipeline.pairs.counts import require_balance
from mrpo_pipeline.pairs.sources import PairFile, find_files, looks_right
from mrpo_pipeline.recipe import Pairs, Recipe
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.rendering.identity_cache import ModelReading
from mrpo_pipeline.rendering.tokenizer_source import load_tokenizer

log = logging.getLogger("mrpo")

# Prepared pairs of files smaller than this in total are not cached.
CACHED_BYTES = 1 << 16


def read_tables(settings: Pairs) -> dict[str, PairTable]:
    """Read the files of the recipe's pairs, ``train`` and ``eval`` as far as it names them.

    Raises:
        UserError: see ``pairs.read_pairs``; also if the recipe names no pairs.
    """
    return {
        source.name: read_pairs(source.place, **source.chosen, **settings.reading())
        for source in settings.required_sources()
    }


def read_splits(settings: Pairs) -> dict[str, PairTable]:
    """The recipe's pairs by split: ``train``, and ``eval`` and ``weights`` if the recipe has them."""
    tables = read_tables(settings)
    for name, table in tables.items():
        for notice in (*table.read_as, *table.notices):
            log.info("%s: %s", name, notice)
    splits = hold_out(settings, tables)
    if settings.eval is not None and "train" in splits:
        shared = splits["eval"].frame.select("prompt").unique().join(splits["train"].frame, on="prompt", how="semi")
        if shared.height:
            log.warning(
                "%s held-out prompts are also in the training pairs: held-out metrics will be too high.",
                f"{shared.height:,}",
            )
    return splits


def files_of(settings: Pairs) -> list[PairFile]:
    """Every file of the recipe's pairs. Raises UserError: see ``find_files``."""
    return [file for source in settings.sources() for file in find_files(source.place, **source.chosen)]


def hold_out(settings: Pairs, splits: dict[str, PairTable]) -> dict[str, PairTable]:
    """The splits that were read, and those that the recipe's fractions take from the training pairs.

    The third split takes no prompt that a file of held-out pairs also contains: it is disjoint from both.

    Raises:
        UserError: for too few prompts to split, or if no prompt is left for the third split.
    """
    splits = dict(splits)
    for split, fraction in (("eval", settings.eval_fraction), ("weights", settings.weights_fraction)):
        if fraction and "train" in splits:
            frame = splits["train"].frame
            rest, held_out = split_by_prompt(frame, fraction, salt=split)
            if split == "weights" and "eval" in splits:
                held_out = held_out.join(splits["eval"].frame, on="prompt", how="anti", maintain_order="left")
                rest = frame.join(held_out, on="prompt", how="anti", maintain_order="left")
                if not held_out.height:
                    raise UserError(
                        f"The third split is empty: every prompt that pairs.weights_fraction ({fraction:g}) takes from the training "
                        "pairs is also in the held-out pairs, and the third split must be disjoint from both. Expected one prompt at "
                        "least. Raise pairs.weights_fraction, set it to 0, or take the shared prompts out of pairs.eval."
                    )
            require_balance(f"holding out {split} pairs", frame.height, rest.height, {"held out": held_out.height})
            splits[split] = PairTable(held_out)
            splits["train"] = PairTable(rest, splits["train"].skipped)
    return splits


def tokenizer_of(source: ModelSource) -> Any:
    """The model's transformers tokenizer: the one that the recipe names, else its adapter's, else its own."""
    return load_tokenizer(source)[0]


def report_reading(name: str, model: Renderer | ModelReading) -> None:
    """Log one line on a model that does not read conversations by its own tokenizer and template."""
    if model.reading:
        log.info("%s: %s.", name, "; ".join(model.reading))


def prepare_splits(recipe: Recipe, *, report: bool = True) -> dict[str, Prepared]:
    """Read and prepare every split of the recipe. Bad rows are reported before a tokenizer loads.

    Large local files are prepared once: see ``prepared_cache``.

    Args:
        report: log the counts of each split.
    """
    files = _cacheable_files(recipe.pairs)
    policy = _policy_if_it_loads(recipe) if files else None
    key = _content_key(recipe, files, policy) if files and policy else None
    kept = prepared_cache.load(key) if key else None
    if kept is not None:
        prepared, messages = kept
        for level, text in messages:
            log.log(level, "%s", text)
    else:
        with prepared_cache.recorded_log() as messages:
            prepared = _read_and_prepare(recipe, policy)
        # Files may have been changed or added meanwhile.
        same = files is not None and files == _cacheable_files(recipe.pairs)
        if key and files and policy and same and key == _content_key(recipe, files, policy):
            prepared = prepared_cache.save(key, prepared, messages) or prepared
    for split, part in prepared.items() if report else ():
        log.info("%s: %s", split, part.counts)
    return prepared


def _read_and_prepare(recipe: Recipe, policy: ModelReading | None) -> dict[str, Prepared]:
    splits = read_splits(recipe.pairs)
    renderer = policy.renderer if policy else Renderer.of(recipe.required_policy())
    report_reading("policy", renderer)
    return {
        split: prepare(
            table,
            renderer,
            recipe.limits,
            what=f"{split} pairs",
            on_bad_row=recipe.pairs.on_bad_row,
            refuse_rendered=recipe.pairs.serialized != "text",
        )
        for split, table in splits.items()
    }


# Errors in files or tokenizer are reported when the pairs are read. Here they only turn off caching.


def _cacheable_files(pairs: Pairs) -> list[str] | None:
    """The pairs files if all are local and they are large together; None otherwise."""
    try:
        files = files_of(pairs)
        if any(file.remote for file in files):
            return None
        names = [file.name for file in files]
        if not all(map(looks_right, files)):  # reading such a file fails: do not hash it
            return None
        return names if sum(Path(name).stat().st_size for name in names) >= CACHED_BYTES else None
    except (UserError, OSError):
        return None


def _policy_if_it_loads(recipe: Recipe) -> ModelReading | None:
    try:
        return ModelReading(recipe.required_policy())
    except (UserError, OSError):
        return None


def _content_key(recipe: Recipe, files: list[str], policy: ModelReading) -> str | None:
    """The cache key of the prepared pairs: files, settings of reading and cutting, the policy's tokenizer."""
    settings = {
        "pairs": recipe.pairs.model_dump(mode="json"),
        "limits": recipe.limits.model_dump(mode="json"),
        "policy": policy.identity(),
        "version": mrpo_pipeline.__version__,
    }
    try:
        return prepared_cache.key_of(files, settings)
    except OSError:
        return None


def wanted_completions(parts: Iterator[Prepared] | list[Prepared]) -> pl.DataFrame:
    """The distinct completions of prepared pairs, with the furthest cut of any pair.

    Returns:
        columns ``completion_id``, ``prompt`` (canonical), ``completion``, ``cut`` (bytes; null for no cut).
    """
    sides = [
        part.frame.select(
            pl.col(f"{side}_id").alias("completion_id"),
            pl.col("prompt_read").alias("prompt"),
            pl.col(side).alias("completion"),
            pl.col(f"{side}_cut").alias("cut"),
        )
        for part in parts
        for side in ("chosen", "rejected")
    ]
    every = pl.concat(sides)
    distinct = every.group_by("completion_id", maintain_order=True).agg(
        pl.first("prompt", "completion"),
        pl.when(pl.col("cut").is_null().any()).then(None).otherwise(pl.col("cut").max()).alias("cut"),
        pl.len().alias("sides"),
    )
    repeated = int((distinct["sides"] - 1).sum())
    require_balance(
        "finding distinct completions", every.height, distinct.height, {"repeated": repeated}, what="sides of pairs"
    )
    return distinct.drop("sides")
