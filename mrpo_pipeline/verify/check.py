"""N cached completions of a reference computed again by plain transformers, and held against the limit of the dtype."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

import mrpo_pipeline
from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.dataset.prepare import renderer_of
from mrpo_pipeline.dataset.shared_prompt import shared_tokens
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.engine_options import NO_OPTIONS
from mrpo_pipeline.models.source import ModelSource, as_recorded, fetch, resolve
from mrpo_pipeline.pairs.completion import completion_text
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.rendering import Rendered, Renderer
from mrpo_pipeline.terminal import quiet_libraries, track
from mrpo_pipeline.verify.comparison import Compared, figures, worst_token
from mrpo_pipeline.verify.diagnosis import guess_reasons
from mrpo_pipeline.verify.known_faults import confirmed_reasons
from mrpo_pipeline.verify.oracle import PlainModel
from mrpo_pipeline.verify.result import Drift, Worst, beginning
from mrpo_pipeline.verify.sample import draw_completions
from mrpo_pipeline.verify.tolerances import limits_for

log = logging.getLogger("mrpo")


def check_numbers(
    recipe: Recipe, name: str, wanted: pl.DataFrame, count: int, *, limit: float | None = None, seed: int = 0
) -> Drift:
    """As :func:`measure_drift`, which must pass.

    Raises:
        RunError: beyond the limit; the worst completion is named, and the likely fault.
    """
    drift = measure_drift(recipe, name, wanted, count, limit=limit, seed=seed)
    failure = drift.failure()
    if failure is not None:
        raise RunError(failure)
    return drift


def measure_drift(
    recipe: Recipe, name: str, wanted: pl.DataFrame, count: int, *, limit: float | None = None, seed: int = 0
) -> Drift:
    """Compute completions of a reference again by plain transformers, compare, and keep the result beside the manifest.

    They are drawn across lengths from those that the cache serves, rendered by the reference's own renderer, and computed
    one at a time, in this process, from the model's files. The cached row counts as far as it goes.

    Args:
        wanted: ``completion_id``, ``prompt``, ``completion``, ``cut`` (see ``prepare.wanted_completions``).
        count: completions to compute again.
        limit: nats a token, in place of the dtype's own.
        seed: of the draw.

    Raises:
        UserError: where nothing is scored yet, the cache is another reference's, or transformers cannot load the model.
        RunError: where a shard is damaged, or the model does not fit in memory.
    """
    source = fetch(_source(recipe, name))
    renderer = renderer_of(source)
    cache = ReferenceCache.open(recipe.cache, name)
    manifest = cache.manifest()
    if manifest is None:
        raise UserError(
            f"Reference {name} is not scored yet at {recipe.cache}: there are no numbers to compute again. Run `mrpo score-refs` "
            "with this recipe first."
        )
    source = as_recorded(source, manifest.fingerprint)
    cache.check(resolve(source, renderer.identity()))
    served = _served(cache, wanted)
    if served.is_empty():
        raise UserError(
            f"The cache of reference {name} at {recipe.cache} serves none of the {wanted.height:,} completions of these pairs: "
            "expected pairs that were scored. Name those, or run `mrpo score-refs` with this recipe."
        )
    picked = draw_completions(served, count, seed)
    model = PlainModel(source, _device(recipe, name))
    try:
        drift = _measure(_Check(cache, manifest, renderer, model, served.height, limit), picked)
    finally:
        model.close()
    _keep(cache, drift)
    return drift


@dataclass
class _Check:
    cache: ReferenceCache
    manifest: Manifest
    renderer: Renderer
    model: PlainModel
    served: int
    limit: float | None


def _measure(check: _Check, picked: pl.DataFrame) -> Drift:
    fingerprint = check.manifest.fingerprint
    dtype, quantization = fingerprint.get("dtype", check.model.dtype), fingerprint.get("quantization", "none")
    limits = limits_for(dtype, quantization, asked=check.limit)
    compared, rendered = _compare(check, picked)
    found = figures(compared)
    lengths = [len(one.cached_ids) for one in compared]
    drift = Drift(
        reference=check.cache.name,
        cache=check.cache.location,
        dtype=dtype,
        quantization=quantization,
        served=check.served,
        shortest=min(lengths),
        longest=max(lengths),
        figures=found,
        limits=limits,
        other_ids=sum(not one.ids_agree for one in compared),
        other_prompts=sum(one.cached_prompt_tokens != one.prompt_tokens for one in compared),
        worst=_worst(compared),
        reasons=[],
        scored_by=dict(check.manifest.recorded),
        computed_by={
            "engine": "transformers, one sequence at a time",
            "versions": {"mrpo": mrpo_pipeline.__version__, **check.model.versions()},
            "device": str(check.model.device),
            "dtype": check.model.dtype,
        },
        time=datetime.now(UTC).isoformat(),
        fingerprint_hash=check.manifest.fingerprint_hash,
    )
    if drift.passed:
        return drift
    confirmed = confirmed_reasons(check.model, compared, rendered, limits)
    reasons = confirmed or guess_reasons(compared, limits.clearly_off)
    options = fingerprint.get("engine_options", NO_OPTIONS)
    if options != NO_OPTIONS:
        reasons = [f"they were scored with engine options that plain transformers does not have ({options})", *reasons]
    return replace(drift, reasons=reasons)


def _compare(check: _Check, picked: pl.DataFrame) -> tuple[list[Compared], list[Rendered]]:
    """The picked completions beside themselves computed again, and as rendered here."""
    rows = {row["completion_id"]: row for row in check.cache.rows(picked).iter_rows(named=True)}
    items = list(picked.select("prompt", "completion").iter_rows())
    rendered = check.renderer.render(items)
    compared: list[Compared] = []
    with quiet_libraries(), track(f"computing {check.cache.name} again", picked.height, "completions") as progress:
        for identifier, (_, completion), sides in zip(picked["completion_id"], items, rendered, strict=True):
            compared.append(_computed_again(check.model, rows[identifier], completion, sides))
            progress.advance(1)
    return compared, rendered


def _computed_again(model: PlainModel, row: dict[str, Any], completion: str, sides: Rendered) -> Compared:
    cached_ids = np.asarray(row["token_ids"], dtype=np.int32)
    shared = shared_tokens(cached_ids, sides.scored_ids)
    if model.context_length is not None:
        # A row that was scored under a shorter prompt than this one may be longer than fits here.
        shared = min(shared, sides.scored_within(model.context_length - len(sides.prompt_ids)))
    part = sides.beginning(shared)
    again = model.logps(part.prompt_ids, part.completion_ids, part.scored) if shared else np.empty(0, np.float32)
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
        again=again,
    )


def _worst(compared: Sequence[Compared]) -> Worst | None:
    other = [one for one in compared if not one.ids_agree]
    if other:
        one, place = other[0], len(other[0].cached)
    else:
        found = worst_token([one for one in compared if not one.same_text] or compared)
        if found is None:
            return None
        one, place = found
    numbers = (None, None) if other else (float(one.cached[place]), float(one.again[place]))
    return Worst(
        completion_id=one.completion_id,
        text=beginning(one.text),
        place=place,
        cached_id=int(one.cached_ids[place]) if place < len(one.cached_ids) else None,
        token_id=int(one.ids[place]) if place < len(one.ids) else None,
        token=one.token_text(place) if place < len(one.ids) else "",
        cached=numbers[0],
        again=numbers[1],
    )


def _source(recipe: Recipe, name: str) -> ModelSource:
    sources = {source.name: source for source in recipe.sources()}
    if name not in sources:
        raise UserError(
            f"The recipe names no reference {name}: expected one of {', '.join(sources)}. Correct the name, or add it under "
            "`references:`."
        )
    return sources[name]


def _device(recipe: Recipe, name: str) -> str | None:
    asked = recipe.scoring_of(name).engine_options.get("device")
    return None if asked is None else str(asked)


def _served(cache: ReferenceCache, wanted: pl.DataFrame) -> pl.DataFrame:
    """The rows of ``wanted`` that the cache serves."""
    absent = pl.concat(
        [part.select("completion_id") for part in (cache.missing(wanted), cache.unfit(wanted))], how="vertical"
    )
    return wanted.join(absent, on="completion_id", how="anti", maintain_order="left")


def _keep(cache: ReferenceCache, drift: Drift) -> None:
    try:
        cache.record_check(drift.as_dict())
    except (OSError, RunError) as error:  # a cache that may be read only can be checked all the same
        log.warning("%s: the result of the check could not be kept beside the manifest (%s).", cache.name, error)
