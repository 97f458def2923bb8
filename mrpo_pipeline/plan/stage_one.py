"""What scoring one reference will take: tokens by its own tokenizer, bytes of cache, memory, operations."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.prepare import renderer_of
from mrpo_pipeline.engines import choose_engine
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.source import ModelSource, as_recorded, has_tokenizer, resolve, resolve_dtype
from mrpo_pipeline.pairs.read import OnBadRow
from mrpo_pipeline.plan.architecture import Architecture, describe, empty_model, read_model_config
from mrpo_pipeline.plan.cache_bytes import ASSUMED_ERROR, KNOWN_ERROR, RowToScore, bytes_per_token
from mrpo_pipeline.plan.completions import COMPLETION, TEXT, Wanted
from mrpo_pipeline.plan.estimate import Estimate
from mrpo_pipeline.plan.hardware import Machine
from mrpo_pipeline.plan.lengths import Lengths, measure_lengths
from mrpo_pipeline.plan.report import ReferencePlan
from mrpo_pipeline.plan.scoring_memory import Batch, ScoringMemory
from mrpo_pipeline.recipe import Scoring
from mrpo_pipeline.rendering import Renderer

_SERVED_LOOKED_AT = 16  # completions of the cache whose log-probs are read: a shard each at most

Mask = npt.NDArray[np.bool_]


class ReferencePlanner:
    """Plans one reference after the other; what two of them share (a tokenizer, an architecture) is looked at once."""

    def __init__(self, cache_root: str, wanted: Wanted, machine: Machine, on_bad_row: OnBadRow = "error") -> None:
        self._root = cache_root
        self._wanted = wanted
        self._machine = machine
        self._on_bad_row = on_bad_row
        self._memory = ScoringMemory(machine)
        self._lengths: dict[Hashable, Lengths] = {}
        self._architectures: dict[Hashable, Architecture] = {}
        self.notices: list[str] = []
        self.too_long: dict[str, pl.DataFrame] = {}
        """By reference, the completions that do not fit its context: `completion_id`, `tokens` of prompt and completion."""
        self.unfit: set[str] = set()
        """Completions that some reference can't read whole."""

    def plan(self, source: ModelSource, settings: Scoring) -> ReferencePlan:
        """What the reference takes, as far as it can be told without its weights.

        Raises:
            UserError: where its cache was computed by another reference than this, or a setting is wrong.
        """
        frame, count = self._wanted.frame, self._wanted.count
        unknown: list[str] = []
        renderer = _renderer(source, unknown)
        self.notices += [f"{source.name}: {line}." for line in renderer.reading] if renderer else []
        cache = ReferenceCache.open(self._root, source.name)
        source = as_recorded(source, cache.fingerprint())
        cache.check(resolve(source, renderer.identity() if renderer else None))
        config = read_model_config(source)
        context = None if config is None else context_length(config)
        missing = _is_in(frame, cache.missing(frame, context=context))
        known = cache.unfit(frame, context=context)
        unfit = _is_in(frame, known)
        self.too_long[source.name] = known.select("completion_id", pl.col("tokens").cast(pl.Int64))
        engine, _ = choose_engine(settings.engine, settings.engine_options, self._machine.device)
        plan = ReferencePlan(
            source.name, source.model, engine, _dtype(source, self._machine.device, unknown), source.quantization,
            completions=count(np.ones(frame.height, dtype=bool)), cached=count(~missing & ~unfit), unfit=count(unfit),
            to_score=count(missing), context_tokens=context, unknown=unknown,
        )  # fmt: skip
        architecture = self._architecture(source, config, unknown)
        if architecture is not None:
            plan.parameters, plan.active_parameters = architecture.parameters, architecture.active
        if renderer is None:
            return plan
        lengths = self._measure(renderer, missing, settings, source.name)
        fits = lengths.written if context is None else lengths.written & (lengths.whole <= context - 1)
        self._count(plan, lengths, fits, unfit)
        if fits.any():
            self._size(plan, settings, cache, [row for place, row in lengths.rows if fits[place]], missing | unfit)
        else:
            plan.cache_bytes = Estimate(0)
        if architecture is not None:
            self._cost(plan, source, settings, architecture, lengths, fits)
        return plan

    def _measure(self, renderer: Renderer, missing: Mask, settings: Scoring, name: str) -> Lengths:
        key = (tuple(sorted(renderer.identity().items())), missing.tobytes(), settings.rows_per_shard)
        if key not in self._lengths:
            self._lengths[key] = measure_lengths(
                renderer,
                self._wanted.frame,
                missing,
                rows_per_shard=settings.rows_per_shard,
                name=name,
                skip=self._on_bad_row == "skip",
            )
        return self._lengths[key]

    def _count(self, plan: ReferencePlan, lengths: Lengths, fits: Mask, unfit: Mask) -> None:
        height = self._wanted.frame.height
        left, too_long = np.zeros(height, dtype=bool), unfit.copy()
        left[lengths.places[fits]] = True
        too_long[lengths.places[~fits]] = True
        plan.to_score, plan.unfit = self._wanted.count(left), self._wanted.count(too_long)
        self.unfit |= set(self._wanted.frame["completion_id"].filter(pl.Series(too_long)))
        away = lengths.written & ~fits
        ids = self._wanted.frame["completion_id"][lengths.places[away].tolist()]
        self.too_long[plan.name] = pl.concat(
            [
                self.too_long[plan.name],
                pl.DataFrame({"completion_id": ids, "tokens": pl.Series(lengths.whole[away], dtype=pl.Int64)}),
            ]
        )
        plan.tokens = self._total(lengths, fits, lengths.whole)
        plan.completion_tokens = self._total(lengths, fits, lengths.tokens, by=COMPLETION)
        plan.longest_tokens = int(lengths.whole[fits].max(initial=0))

    def _cost(
        self,
        plan: ReferencePlan,
        source: ModelSource,
        settings: Scoring,
        architecture: Architecture,
        lengths: Lengths,
        fits: Mask,
    ) -> None:
        tokens, completions = _or_none(plan.tokens), _or_none(plan.completion_tokens)
        projected = completions if plan.engine == "transformers" else tokens
        squares = self._total(lengths, fits, lengths.whole.astype(np.float64) ** 2)
        flops = architecture.forward_flops(tokens.value, squares.value, projected.value)
        plan.flops = Estimate(flops, flops * max(tokens.relative_error, projected.relative_error))
        plan.hours = self._machine.hours(plan.flops, plan.dtype)
        if plan.dtype is not None and fits.any():
            longest = int(lengths.whole[fits].argmax())
            batch = Batch(int(lengths.prompts[fits][longest]), int(lengths.tokens[fits][longest]))
            plan.memory = self._memory.of(source, settings, plan.engine, architecture, plan.dtype, batch)

    def _size(
        self, plan: ReferencePlan, settings: Scoring, cache: ReferenceCache, rows: list[RowToScore], unserved: Mask
    ) -> None:
        """Bytes of the cache, from rows of it."""
        known = _known_logps(cache, self._wanted.frame.filter(pl.Series(~unserved)))
        tokens = _or_none(plan.completion_tokens)
        per_shard = tokens.value / max(plan.to_score.value, 1) * settings.rows_per_shard
        each = bytes_per_token(
            rows,
            rows_per_shard=settings.rows_per_shard,
            parameters=plan.parameters,
            known=known,
            tokens_per_shard=min(tokens.value, per_shard) if self._wanted.is_sample else None,
        )
        value = tokens.value * each
        error = value * (ASSUMED_ERROR if known is None else KNOWN_ERROR)
        plan.cache_bytes_per_token = each
        plan.cache_bytes = Estimate(value, math.hypot(error, tokens.error * each))

    def _total(self, lengths: Lengths, fits: Mask, values: npt.NDArray[Any], by: str = TEXT) -> Estimate:
        spread = np.zeros(self._wanted.frame.height)
        spread[lengths.places[fits]] = values[fits]
        return self._wanted.total(spread, by)

    def _architecture(self, source: ModelSource, config: Any | None, unknown: list[str]) -> Architecture | None:
        if config is None:
            unknown.append(f"sizes, memory and hours: the configuration of {source.model} can't be had")
            return None
        import torch

        key = config.to_json_string(use_diff=False)
        if key not in self._architectures:
            try:
                model = empty_model(config, dtype=torch.float32, trust_remote_code=source.trust_remote_code)
            except UserError as error:
                unknown.append(f"sizes, memory and hours: {error}")
                return None
            self._architectures[key] = describe(model)
        return self._architectures[key]


def _renderer(source: ModelSource, unknown: list[str]) -> Renderer | None:
    try:
        return renderer_of(source)
    except UserError as error:
        if has_tokenizer(source):  # it is here, and cannot be used
            raise
        unknown.append(f"tokens, cache bytes and hours: {error}")
        return None


def _dtype(source: ModelSource, device: str, unknown: list[str]) -> str | None:
    try:
        return resolve_dtype(source, device)
    except UserError as error:
        unknown.append(f"memory: {error}")
        return None


def _is_in(frame: pl.DataFrame, part: pl.DataFrame) -> Mask:
    """(N,) which rows of the frame, whose completions are distinct, are in a part of it."""
    return frame["completion_id"].is_in(part["completion_id"].implode()).to_numpy()


def _known_logps(cache: ReferenceCache, served: pl.DataFrame) -> npt.NDArray[np.float32] | None:
    """Log-probs that the reference gave already; None where there are none."""
    if served.is_empty():
        return None
    rows = cache.rows(served.head(_SERVED_LOOKED_AT))
    return rows["logprobs"].explode(empty_as_null=False, keep_nulls=False).to_numpy()


def _or_none(found: Estimate | None) -> Estimate:
    return Estimate(0) if found is None else found
