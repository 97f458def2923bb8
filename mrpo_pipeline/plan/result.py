"""The plan as plain data: units in the names, and beside a sampled figure its error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from mrpo_pipeline.plan.extrapolation import Estimate
from mrpo_pipeline.plan.scoring_memory import ScoringMemory
from mrpo_pipeline.plan.training_memory import TrainingMemory


@dataclass
class SplitPlan:
    """One split: pairs = kept + dropped (by reason); and the cuts."""

    pairs: int
    kept: Estimate
    dropped: dict[str, Estimate]
    cut_prompts: Estimate
    cut_completions: Estimate


@dataclass
class DataPlan:
    """The data: rows of the files, pairs by split, and the distinct completions that every reference scores.

    ``sampled_share`` is the share of prompts that were tokenized (1: all, no figure is estimated), ``sampled_pairs`` their pairs.
    """

    rows: int
    bad_rows: dict[str, int]
    notices: tuple[str, ...]
    prompts: int
    pairs: int
    splits: dict[str, SplitPlan]
    completions: Estimate
    sampled_share: float
    sampled_pairs: int


@dataclass
class ReferencePlan:
    """Cost of scoring one reference; None for what is unknown, with the reason in ``unknown``.

    ``tokens`` counts prompts and completions that are still to score, ``completion_tokens`` the completions alone.
    ``cache_bytes`` is what scoring adds to the cache.
    """

    name: str
    model: str
    engine: str
    dtype: str | None
    quantization: str | None
    completions: Estimate
    cached: Estimate
    unfit: Estimate
    to_score: Estimate
    tokens: Estimate | None = None
    completion_tokens: Estimate | None = None
    longest_tokens: int | None = None
    context_tokens: int | None = None
    cache_bytes: Estimate | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    memory: ScoringMemory | None = None
    fits: bool | None = None
    flops: Estimate | None = None
    hours: Estimate | None = None
    unknown: list[str] = field(default_factory=list)


@dataclass
class TrainingPlan:
    """Cost of stage two.

    ``tokens_per_epoch`` counts the prompt of a pair twice, as ``num_tokens`` in the results does.
    """

    model: str
    dtype: str | None
    pairs: Estimate
    epochs: float
    steps_per_epoch: int
    steps: int
    pairs_per_step: int
    tokens_per_epoch: Estimate
    tokens: Estimate
    gradient_checkpointing: bool
    parameters: int | None = None
    memory: TrainingMemory | None = None
    fits: bool | None = None
    flops: Estimate | None = None
    hours: Estimate | None = None
    unknown: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """Cost of a run.

    Attributes:
        gpu, cpu: the device of the hours (see ``hardware.Machine``); both None where no hours are given.
        device: of the memory figures: ``gpu`` or ``cpu``.
        short_contexts: a sentence for each reference whose context drops pairs: how many, and the length that keeps them.
        pairs_left: pairs of the sample that every reference can score; 0 means nothing to score or train on.
    """

    data: DataPlan
    references: list[ReferencePlan]
    training: TrainingPlan | None
    gpu: dict[str, Any] | None
    cpu: dict[str, Any] | None
    device: str
    notices: tuple[str, ...]
    short_contexts: list[str]
    pairs_left: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: an estimate under its name, the half width of its 95% interval under ``NAME_error``."""
        return _named(vars(self))

    def table(self) -> str:
        """The plan as text for a terminal."""
        from mrpo_pipeline.plan.table import plan_table

        return plan_table(self)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _named({one.name: getattr(value, one.name) for one in fields(value)})
    if isinstance(value, dict):
        return _named(value)
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _named(values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(value, Estimate):
            plain[name] = _plain(value)
            continue
        is_count = name != "hours"
        plain[name] = round(value.value) if is_count else value.value
        if value.error:
            plain[f"{name}_error"] = math.ceil(value.error) if is_count else value.error
    return plain
