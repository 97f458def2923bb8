"""Cost of scoring one reference: tokens by its tokenizer, cache bytes, memory, operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.engines import choose_engine
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.source import ModelSource, as_recorded, has_tokenizer, resolve, resolve_dtype
from mrpo_pipeline.pairs.read import OnBadRow
from mrpo_pipeline.plan.architecture import Architecture, architecture_of, read_model_config
from mrpo_pipeline.plan.completions import Completions, Lengths, Mask, cache_bytes, measure_lengths
from mrpo_pipeline.plan.extrapolation import COMPLETION, Estimate
from mrpo_pipeline.plan.hardware import Machine
from mrpo_pipeline.plan.result import ReferencePlan
from mrpo_pipeline.plan.scoring_memory import scoring_memory
from mrpo_pipeline.recipe import Scoring
from mrpo_pipeline.rendering import Renderer

T = TypeVar("T")


class ReferencePlanner:
    """Plans one reference after another; tokenizers and architectures that they share are measured once.

    Attributes:
        notices: how references read conversations.
        too_long: by reference, the completions that exceed its context: `completion_id`, `tokens` of prompt and completion.
        unfit: completions that some reference can't score.
    """

    def __init__(self, cache_root: str, completions: Completions, machine: Machine, on_bad_row: OnBadRow) -> None:
        self._root = cache_root
        self._completions = completions
        self._machine = machine
        self._skip = on_bad_row == "skip"
        self._lengths: dict[Hashable, Lengths] = {}
        self._architectures: dict[Hashable, Architecture | None] = {}
        self.notices: list[str] = []
        self.too_long: dict[str, pl.DataFrame] = {}
        self.unfit: set[str] = set()

    def plan(self, source: ModelSource, settings: Scoring) -> ReferencePlan:
        """The reference's cost, as far as it is known without weights.

        Raises:
            UserError: for a cache of another reference, or a wrong setting.
        """
        frame, count = self._completions.frame, self._completions.everyone.count
        unknown: list[str] = []
        renderer = _renderer(source, unknown)
        self.notices += [f"{source.name}: {line}." for line in renderer.reading] if renderer else []
        cache = ReferenceCache.open(self._root, source.name)
        source = as_recorded(source, cache.fingerprint())
        cache.check(resolve(source, renderer.identity() if renderer else None))
        served = source.served
        config = None if served else read_model_config(source)
        context = None if config is None else context_length(config)
        missing = _is_in(frame, cache.missing(frame, context=context))
        recorded = cache.unfit(frame, context=context).select("completion_id", pl.col("tokens").cast(pl.Int64))
        unfit = _is_in(frame, recorded)
        self.too_long[source.name] = recorded
        engine, dtype = "served", None
        if served is None:
            engine, _ = choose_engine(settings.engine, settings.engine_options, self._machine.device)
            dtype = _if_known(lambda: resolve_dtype(source, self._machine.device), "memory", unknown)
        plan = ReferencePlan(
            source.name, source.model, engine, dtype, source.quantization,
            completions=count(np.ones(frame.height, dtype=bool)), cached=count(~missing & ~unfit), unfit=count(unfit),
            to_score=count(missing), context_tokens=context, unknown=unknown,
        )  # fmt: skip
        architecture = None if served else self._architecture(source, config, unknown)
        if served:
            unknown.append(
                f"sizes, context, memory and hours: those of the server at {served.address}, which the plan does not contact"
            )
        if architecture is not None:
            plan.parameters, plan.active_parameters = architecture.parameters, architecture.active
        if renderer is not None:
            lengths = self._measure(renderer, missing, source.name, settings.rows_per_shard)
            fits = (lengths.tokens > 0) & (lengths.together < (context or math.inf))
            self._count(plan, lengths, fits, unfit | (missing & ~fits), settings)
            if architecture is not None:
                self._cost(plan, source, settings, architecture, lengths, fits)
        return plan

    def _measure(self, renderer: Renderer, missing: Mask, name: str, rows_per_shard: int) -> Lengths:
        key = (tuple(sorted(renderer.identity().items())), missing.tobytes(), rows_per_shard)
        if key not in self._lengths:
            self._lengths[key] = measure_lengths(
                renderer, self._completions.frame, missing, rows_per_shard=rows_per_shard, name=name, skip=self._skip
            )
        return self._lengths[key]

    def _count(self, plan: ReferencePlan, lengths: Lengths, fits: Mask, unfit: Mask, settings: Scoring) -> None:
        """Completions, tokens, and cache bytes."""
        everyone, names = self._completions.everyone, self._completions.frame["completion_id"]
        plan.to_score, plan.unfit = everyone.count(fits), everyone.count(unfit)
        self.unfit |= set(names.filter(pl.Series(unfit)))
        long = pl.DataFrame({"completion_id": names, "tokens": lengths.together})
        self.too_long[plan.name] = pl.concat(
            [self.too_long[plan.name], long.filter(pl.Series(~fits & (lengths.tokens > 0)))]
        )
        plan.tokens = everyone.total(lengths.together * fits)
        plan.completion_tokens = everyone.total(lengths.tokens * fits, COMPLETION)
        plan.longest_tokens = int((lengths.together * fits).max(initial=0))
        rows = [row for place, row in lengths.rows.items() if fits[place]]
        plan.cache_bytes = cache_bytes(plan.completion_tokens, rows, settings.rows_per_shard)

    def _cost(
        self, plan: ReferencePlan, source: ModelSource, settings: Scoring, architecture: Architecture, lengths: Lengths,
        fits: Mask,
    ) -> None:  # fmt: skip
        """Operations, hours, memory."""
        tokens, completions = plan.tokens or Estimate(0), plan.completion_tokens or Estimate(0)
        projected = completions if plan.engine == "transformers" else tokens
        squares = self._completions.everyone.total((lengths.together * fits).astype(np.float64) ** 2)
        flops = architecture.forward_flops(tokens.value, squares.value, projected.value)
        plan.flops = Estimate(flops, flops * max(tokens.relative_error, projected.relative_error))
        plan.hours = self._machine.hours(plan.flops, plan.dtype)
        if plan.dtype is not None and fits.any():
            at = int((lengths.together * fits).argmax())
            longest = int(lengths.prompts[at]), int(lengths.tokens[at])
            plan.memory = scoring_memory(
                source, settings, plan.engine, architecture, plan.dtype, self._machine, longest
            )
            plan.fits = plan.memory.peak_bytes <= self._machine.memory_bytes

    def _architecture(self, source: ModelSource, config: Any | None, unknown: list[str]) -> Architecture | None:
        what = "sizes, memory and hours"
        if config is None:
            unknown.append(f"{what}: the configuration of {source.model} is not available")
            return None
        key = config.to_json_string(use_diff=False)
        if self._architectures.get(key) is None:
            trusted = source.trust_remote_code
            self._architectures[key] = _if_known(lambda: architecture_of(config, trusted), what, unknown)
        return self._architectures[key]


def _renderer(source: ModelSource, unknown: list[str]) -> Renderer | None:
    try:
        return Renderer.of(source)
    except UserError as error:
        if has_tokenizer(source):  # available, but broken
            raise
        unknown.append(f"tokens, cache bytes and hours: {error}")
        return None


def _if_known(find: Callable[[], T], what: str, unknown: list[str]) -> T | None:
    """The result of ``find``; on a UserError None, with the reason added to ``unknown``."""
    try:
        return find()
    except UserError as error:
        unknown.append(f"{what}: {error}")
        return None


def _is_in(frame: pl.DataFrame, part: pl.DataFrame) -> Mask:
    """(N,) which rows of the frame are in a part of it, by completion id."""
    return frame["completion_id"].is_in(part["completion_id"].implode()).to_numpy()
