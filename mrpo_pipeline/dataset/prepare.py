"""A recipe's pairs from their files to what is scored and trained on: read, split, cut, and kept where there are many."""

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
from mrpo_pipeline.pairs.counting import require_balance
from mrpo_pipeline.pairs.sources import PairFile, find_files, looks_right
from mrpo_pipeline.recipe import Pairs, Recipe
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.rendering.tokenizer_source import load_tokenizer

__all__ = [
    "Prepared",
    "files_of",
    "hold_out",
    "policy_renderer",
    "policy_tokenizer",
    "prepare",
    "prepare_splits",
    "read_splits",
    "read_tables",
    "renderer_of",
    "report_reading",
    "wanted_completions",
]

log = logging.getLogger("mrpo")

# Files smaller than this together are read and cut in seconds.
KEPT_BYTES = 4 << 20


def read_tables(settings: Pairs) -> dict[str, PairTable]:
    """The files of the recipe's pairs: ``train`` and ``eval``, as far as it names them.

    Raises:
        UserError: see ``pairs.read_pairs``, and where the recipe names no pairs.
    """
    return {
        source.name: read_pairs(source.place, **source.chosen, **settings.reading())
        for source in settings.required_sources()
    }


def read_splits(settings: Pairs) -> dict[str, PairTable]:
    """The recipe's pairs by split: ``train`` and, where the recipe has them, ``eval`` and ``weights``."""
    tables = read_tables(settings)
    for name, table in tables.items():
        for notice in (*table.read_as, *table.notices):
            log.info("%s: %s", name, notice)
    splits = hold_out(settings, tables)
    if settings.eval is not None and "train" in splits:
        shared = splits["eval"].frame.select("prompt").unique().join(splits["train"].frame, on="prompt", how="semi")
        if shared.height:
            log.warning(
                "%s held-out prompts stand in the training pairs as well: held-out figures will flatter.",
                f"{shared.height:,}",
            )
    return splits


def files_of(settings: Pairs) -> list[PairFile]:
    """Every file of the recipe's pairs. Raises UserError: see ``find_files``."""
    return [file for source in settings.sources() for file in find_files(source.place, **source.chosen)]


def hold_out(settings: Pairs, splits: dict[str, PairTable]) -> dict[str, PairTable]:
    """The splits that were read, and those that the recipe's fractions take from the training pairs.

    A prompt that stands in a file of held-out pairs as well is not taken for the third split: that is apart from both.

    Raises:
        UserError: for too few prompts to split, and where no prompt is left for the third split.
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
                        "pairs stands in the held-out pairs as well, and the third split is apart from both. Expected one prompt at "
                        "least. Raise pairs.weights_fraction, set it to 0, or take the prompts that are shared out of pairs.eval."
                    )
            require_balance(f"holding out {split} pairs", frame.height, rest.height, {"held out": held_out.height})
            splits[split] = PairTable(held_out)
            splits["train"] = PairTable(rest, splits["train"].skipped)
    return splits


def renderer_of(source: ModelSource) -> Renderer:
    """The model's own tokenizer and template; no weights are read."""
    return Renderer.from_pretrained(
        source.model,
        revision=source.revision,
        tokenizer=source.tokenizer,
        adapter=source.adapter,
        template=source.template,
        template_kwargs=source.template_kwargs,
        trust_remote_code=source.trust_remote_code,
        name=source.name,
    )


def policy_renderer(recipe: Recipe) -> Renderer:
    """The policy's renderer: it alone decides the cuts."""
    return renderer_of(recipe.required_policy())


def policy_tokenizer(recipe: Recipe) -> Any:
    """The policy's tokenizer as transformers gives it."""
    return tokenizer_of(recipe.required_policy())


def tokenizer_of(source: ModelSource) -> Any:
    """The tokenizer that the model reads text by, as transformers gives it: what the recipe names, else its adapter's, else its own."""
    tokenizer, _ = load_tokenizer(
        source.model,
        revision=source.revision,
        tokenizer=source.tokenizer,
        adapter=source.adapter,
        trust_remote_code=source.trust_remote_code,
        name=source.name,
    )
    return tokenizer


def report_reading(name: str, renderer: Renderer) -> None:
    """Report, in one line, a model that does not read conversations by its own tokenizer and template."""
    if renderer.reading:
        log.info("%s: %s.", name, "; ".join(renderer.reading))


def prepare_splits(recipe: Recipe, *, say: bool = True) -> dict[str, Prepared]:
    """Read and prepare every split of the recipe, and say what was kept (unless ``say`` is false: the caller does).

    Bad rows are told before a tokenizer loads.

    Where there are many pairs, and files of this machine hold them, they are prepared once: see ``prepared_cache``.
    """
    files = _files_worth_keeping(recipe.pairs)
    renderer = _renderer_if_it_loads(recipe) if files else None
    key = _content_key(recipe, files, renderer) if files and renderer else None
    kept = prepared_cache.find(key) if key else None
    if kept is not None:
        for level, text in kept.said:
            log.log(level, "%s", text)
        prepared = _from_kept(kept)
    else:
        with prepared_cache.remembering() as said:
            prepared = _read_and_prepare(recipe, renderer)
        # Files may have been written to meanwhile, or have come to a folder.
        same = files is not None and files == _files_worth_keeping(recipe.pairs)
        if key and files and renderer and same and key == _content_key(recipe, files, renderer):
            tables = {split: part.frame for split, part in prepared.items()}
            counts = {split: part.counts() for split, part in prepared.items()}
            kept = prepared_cache.keep(key, prepared_cache.KeptPairs(tables, counts, said))
            prepared = prepared if kept is None else _from_kept(kept)
    for split, part in prepared.items() if say else ():
        log.info("%s: %s", split, part.summary())
    return prepared


def _read_and_prepare(recipe: Recipe, renderer: Renderer | None) -> dict[str, Prepared]:
    splits = read_splits(recipe.pairs)
    renderer = renderer or policy_renderer(recipe)
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


def _from_kept(kept: prepared_cache.KeptPairs) -> dict[str, Prepared]:
    prepared = {split: Prepared(table, **kept.counts[split]) for split, table in kept.tables.items()}
    for split, part in prepared.items():
        require_balance(f"the {split} pairs kept from before", part.pairs_in, part.frame.height, part.dropped)
    return prepared


# Whatever is wrong with files or tokenizer is told by what reads the pairs, in its order: here it means no keeping.


def _files_worth_keeping(pairs: Pairs) -> list[str] | None:
    """The pairs files, where all are of this machine and large together."""
    try:
        files = files_of(pairs)
        if any(file.remote for file in files):
            return None
        names = [file.name for file in files]
        if not all(map(looks_right, files)):  # not worth hashing, whatever its size: reading it says what is wrong
            return None
        return names if sum(Path(name).stat().st_size for name in names) >= KEPT_BYTES else None
    except (UserError, OSError):
        return None


def _renderer_if_it_loads(recipe: Recipe) -> Renderer | None:
    try:
        return policy_renderer(recipe)
    except (UserError, OSError):
        return None


def _content_key(recipe: Recipe, files: list[str], renderer: Renderer) -> str | None:
    """What decides the prepared pairs: files, how they are read and cut, the policy's tokenizer."""
    settings = {
        "pairs": recipe.pairs.model_dump(mode="json"),
        "limits": recipe.limits.model_dump(mode="json"),
        "policy": renderer.identity(),
        "version": mrpo_pipeline.__version__,
    }
    try:
        return prepared_cache.key_of(files, settings)
    except OSError:
        return None


def wanted_completions(parts: Iterator[Prepared] | list[Prepared]) -> pl.DataFrame:
    """The distinct completions of prepared pairs, with the furthest cut that any pair asks for.

    Returns:
        columns ``completion_id``, ``prompt`` (canonical), ``completion``, ``cut`` (bytes; null for the whole).
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
    again = int((distinct["sides"] - 1).sum())
    require_balance(
        "telling completions apart", every.height, distinct.height, {"the same again": again}, what="sides of pairs"
    )
    return distinct.drop("sides")
