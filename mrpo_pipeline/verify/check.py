"""Recompute cached completions of a reference with plain transformers and compare them within the limits of the dtype."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

import mrpo_pipeline
from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.dataset.shared_prompt import shared_tokens
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.engine_options import NO_OPTIONS
from mrpo_pipeline.models.source import ModelSource, as_recorded, fetch, resolve
from mrpo_pipeline.pairs.completion import completion_text
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.rendering import Rendered, Renderer
from mrpo_pipeline.terminal import quiet_libraries, track
from mrpo_pipeline.verify.comparison import Compared, differences, worst_token
from mrpo_pipeline.verify.diagnosis import guess_reasons
from mrpo_pipeline.verify.known_faults import confirmed_reasons
from mrpo_pipeline.verify.oracle import PlainModel
from mrpo_pipeline.verify.result import Drift, Worst, excerpt
from mrpo_pipeline.verify.sample import draw_completions
from mrpo_pipeline.verify.served import ServedModel, open_served
from mrpo_pipeline.verify.tolerances import limits_for

log = logging.getLogger("mrpo")


def check_numbers(
    recipe: Recipe, name: str, wanted: pl.DataFrame, count: int, *, limit: float | None = None, seed: int = 0
) -> Drift:
    """As :func:`measure_drift`, but raises RunError beyond the limit, with the worst completion and the likely cause."""
    drift = measure_drift(recipe, name, wanted, count, limit=limit, seed=seed)
    failure = drift.failure()
    if failure is not None:
        raise RunError(failure)
    return drift


def measure_drift(
    recipe: Recipe, name: str, wanted: pl.DataFrame, count: int, *, limit: float | None = None, seed: int = 0
) -> Drift:
    """Recompute cached completions of a reference with plain transformers, and store the result beside the manifest.

    Completions are drawn across lengths, rendered by the reference's renderer, and computed one at a time in this process.
    A served reference is recomputed by its server, which finds rows of another model but not the server's own faults.

    Args:
        wanted: ``completion_id``, ``prompt``, ``completion``, ``cut`` (see ``prepare.wanted_completions``).
        count: completions to recompute.
        limit: nats per token, in place of the dtype's limit.
        seed: of the draw.

    Raises:
        UserError: where nothing is scored yet, the cache is another reference's, or transformers can't load the model.
        NoServerError: where its server does not answer.
        RunError: where a shard is damaged, or the model does not fit in memory.
    """
    source = fetch(_source(recipe, name))
    renderer = Renderer.of(source)
    cache = ReferenceCache.open(recipe.cache, name)
    manifest = cache.manifest()
    if manifest is None:
        raise UserError(f"Reference {name} is not scored yet at {recipe.cache}. Run `mrpo score-refs` first.")
    source = as_recorded(source, manifest.fingerprint)
    fingerprint = resolve(source, renderer.identity())
    cache.check(fingerprint)
    served = _served(cache, wanted)
    if served.is_empty():
        raise UserError(
            f"The cache of reference {name} at {recipe.cache} has none of the {wanted.height:,} completions of these pairs. Use the "
            "pairs that were scored, or run `mrpo score-refs` with this recipe."
        )
    if manifest.ids_withheld:
        log.info(
            "%s: its token ids were withheld when it was published: log-probs and lengths are compared, ids are not.",
            name,
        )
    picked = draw_completions(served, count, seed)
    rendered = renderer.render(list(picked.select("prompt", "completion").iter_rows()))
    model = _open(recipe, source, renderer)
    try:
        if isinstance(model, ServedModel):
            cache.check({**fingerprint, **model.identity()})
        drift = _measure(cache, manifest, model, picked, rendered, served=served.height, limit=limit)
    finally:
        model.close()
    try:
        cache.record_check(drift.as_dict())
    except (OSError, RunError) as error:  # a read-only cache can be checked too
        log.warning("%s: the result of the check can't be stored in the cache (%s).", cache.name, error)
    return drift


def _measure(
    cache: ReferenceCache, manifest: Manifest, model: PlainModel | ServedModel, picked: pl.DataFrame, rendered: list[Rendered],
    *, served: int, limit: float | None,
) -> Drift:  # fmt: skip
    fingerprint = manifest.fingerprint
    dtype, quantization = fingerprint.get("dtype", model.dtype), fingerprint.get("quantization", "none")
    limits = limits_for(dtype, quantization, token_max=limit)
    rows = {row["completion_id"]: row for row in cache.rows(picked).iter_rows(named=True)}
    compared: list[Compared] = []
    with quiet_libraries(), track(f"recomputing {cache.name}", picked.height, "completions") as progress:
        keys = picked.select("completion_id", "completion").iter_rows()
        for (identifier, completion), sides in zip(keys, rendered, strict=True):
            row = rows[identifier]
            if manifest.ids_withheld:
                row["token_ids"] = _as_rendered(row["token_ids"], sides)
            compared.append(_recomputed(model, row, completion, sides))
            progress.advance(1)
    lengths = [len(one.cached_ids) for one in compared]
    drift = Drift(
        reference=cache.name,
        cache=cache.location,
        dtype=dtype,
        quantization=quantization,
        served=served,
        shortest_tokens=min(lengths),
        longest_tokens=max(lengths),
        differences=differences(compared),
        limits=limits,
        different_ids=sum(not one.ids_agree for one in compared),
        different_prompts=sum(one.cached_prompt_tokens != one.prompt_tokens for one in compared),
        worst=_worst(compared),
        reasons=[],
        scored_by=dict(manifest.recorded),
        recomputed_by={
            "engine": model.engine,
            "note": model.note,
            "versions": {"mrpo": mrpo_pipeline.__version__, **model.versions()},
            "device": str(model.device),
            "dtype": model.dtype,
        },
        time=datetime.now(UTC).isoformat(),
    )
    if drift.passed:
        return drift
    reasons = confirmed_reasons(model, compared, rendered, limits) or guess_reasons(compared, limits.beyond_rounding)
    options = fingerprint.get("engine_options", NO_OPTIONS)
    if options != NO_OPTIONS:
        reasons = [f"scored with engine options that plain transformers does not have ({options})", *reasons]
    return replace(drift, reasons=reasons)


def _as_rendered(withheld: list[int], sides: Rendered) -> list[int]:
    """Token ids of the rendering in place of withheld ones, as many; 0 beyond its end."""
    ids: list[int] = sides.scored_ids[: len(withheld)].tolist()
    return ids + [0] * (len(withheld) - len(ids))


def _recomputed(model: PlainModel | ServedModel, row: dict[str, Any], completion: str, sides: Rendered) -> Compared:
    cached_ids = np.asarray(row["token_ids"], dtype=np.int32)
    shared = shared_tokens(cached_ids, sides.scored_ids)
    if model.context_length is not None:
        # A row that was scored after a shorter prompt may exceed the context after this one.
        shared = min(shared, sides.scored_within(model.context_length - len(sides.prompt_ids)))
    part = sides.beginning(shared)
    logps = model.logps(part.prompt_ids, part.completion_ids, part.scored) if shared else np.empty(0, np.float32)
    return Compared(
        completion_id=row["completion_id"],
        text=completion_text(completion),
        cached_prompt_tokens=row["prompt_tokens"],
        prompt_tokens=len(sides.prompt_ids),
        cached_ids=cached_ids,
        ids=sides.scored_ids,
        complete=row["complete"],
        byte_ends=sides.scored_ends,
        cached=np.asarray(row["logprobs"][:shared], dtype=np.float32),
        recomputed=logps,
    )


def _worst(compared: Sequence[Compared]) -> Worst | None:
    differing = next((one for one in compared if not one.ids_agree), None)
    if differing is not None:
        one, at = differing, len(differing.cached)
    else:
        found = worst_token([one for one in compared if not one.same_text] or compared)
        if found is None:
            return None
        one, at = found
    return Worst(
        completion_id=one.completion_id,
        text=excerpt(one.text),
        position=at,
        cached_id=int(one.cached_ids[at]) if at < len(one.cached_ids) else None,
        token_id=int(one.ids[at]) if at < len(one.ids) else None,
        token=one.token_text(at) if at < len(one.ids) else "",
        cached=None if differing else float(one.cached[at]),
        recomputed=None if differing else float(one.recomputed[at]),
    )


def _source(recipe: Recipe, name: str) -> ModelSource:
    sources = {source.name: source for source in recipe.sources()}
    if name not in sources:
        raise UserError(f"The recipe has no reference {name}: expected one of {', '.join(sources)}.")
    return sources[name]


def _open(recipe: Recipe, source: ModelSource, renderer: Renderer) -> PlainModel | ServedModel:
    if source.served is not None:
        return ServedModel(open_served(source, renderer))
    device = recipe.scoring_of(source.name).engine_options.get("device")
    return PlainModel(source, None if device is None else str(device))


def _served(cache: ReferenceCache, wanted: pl.DataFrame) -> pl.DataFrame:
    """The rows of ``wanted`` that the cache has."""
    absent = pl.concat(
        [part.select("completion_id") for part in (cache.missing(wanted), cache.unfit(wanted))], how="vertical"
    )
    return wanted.join(absent, on="completion_id", how="anti", maintain_order="left")
