"""What a plan says, as plain data: units stand in the names, a sampled figure has its error beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from mrpo_pipeline.plan.extrapolation import Estimate
from mrpo_pipeline.plan.gpus import Gpu


@dataclass
class SplitPlan:
    """One split of the pairs: read = kept + dropped (by reason)."""

    pairs: int
    kept: Estimate
    dropped: dict[str, Estimate] = field(default_factory=dict)
    cut_prompts: Estimate = field(default_factory=lambda: Estimate(0))
    cut_completions: Estimate = field(default_factory=lambda: Estimate(0))


@dataclass
class DataPlan:
    """The data: rows of the files, pairs by split, and the distinct completions that every reference has to score.

    ``sampled_share`` is the share of the prompts whose text was tokenized (1: all, nothing is estimated), and
    ``sampled_pairs`` the pairs that these have.
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
class StageOneMemory:
    """Bytes that one process takes to score, on the device of the plan.

    ``peak_bytes`` is what it can't do without: weights, and the activations of the largest batch (transformers) or the
    block of prompt log-probs and the keys and values of the longest sequence (vLLM, which takes more where there is more). On a CPU
    it holds as well ``process_bytes``, interpreters, libraries and tokenizer, and ``copies_bytes``, the weights as vLLM packs them.
    """

    weights_bytes: int
    activation_bytes: int | None
    logprob_block_bytes: int | None
    kv_bytes_per_token: int | None
    kv_cache_bytes: int | None
    peak_bytes: int
    fits: bool | None
    copies_bytes: int = 0
    process_bytes: int = 0


@dataclass
class ReferencePlan:
    """What scoring one reference takes; None for what can't be told here, with the reason in ``unknown``.

    ``tokens`` counts prompts and completions of what is left to score, ``completion_tokens`` the latter alone;
    ``cache_bytes`` is what is added to the cache.
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
    cache_bytes_per_token: float | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    memory: StageOneMemory | None = None
    flops: Estimate | None = None
    hours: Estimate | None = None
    unknown: list[str] = field(default_factory=list)


@dataclass
class TrainingMemory:
    """Bytes of stage two at its peak, on one device.

    ``activation_bytes`` is everything that comes and goes within a step. ``process_bytes`` is what the process takes
    besides (on a CPU interpreter, libraries and tokenizer, on a GPU the CUDA context), and no part of ``peak_bytes``.
    ``resident_bytes`` is what the process is then seen to take: both, and on a CPU what malloc holds beyond what is alive.
    """

    weights_bytes: int
    lora_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int | None
    peak_bytes: int | None
    process_bytes: int
    resident_bytes: int | None
    fits: bool | None


@dataclass
class TrainingPlan:
    """Stage two: tokens that are trained on, steps, and what it takes.

    ``tokens_per_epoch`` counts every pair's prompt twice, as ``num_tokens`` of the results does. ``batch_pairs`` and
    ``batch_longest_tokens`` are those of the micro-batch that takes the most memory.
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
    batch_pairs: int = 0
    batch_longest_tokens: int = 0
    parameters: int | None = None
    trainable_parameters: int | None = None
    memory: TrainingMemory | None = None
    flops: Estimate | None = None
    hours: Estimate | None = None
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class GpuPlan(Gpu):
    """The GPU that hours and memory are for; there are no hours for one whose speed is unknown."""

    efficiency: float
    count: int


@dataclass
class CpuPlan:
    """The CPU that hours are for: ``gflops`` by dtype are 10⁹ operations a second of matrix products, measured on this machine
    with so many ``threads``; ``efficiency`` is the share of them that is reached."""

    threads: int
    gflops: dict[str, float]
    efficiency: float


@dataclass
class Plan:
    """What a run would do. ``device`` is what the memory figures are for: ``gpu`` or ``cpu``."""

    data: DataPlan
    references: list[ReferencePlan]
    training: TrainingPlan | None
    gpu: GpuPlan | None
    device: str
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    cpu: CpuPlan | None = None
    short_contexts: list[str] = field(default_factory=list)
    """Of each reference whose context leaves pairs out: how many, and the length that keeps them."""
    pairs_left: int = 1
    """Of the pairs that were tokenized, those that every reference reads; where it is 0, nothing would be scored or trained."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON: an estimate under its own name, and the half width of its 95% interval under ``NAME_error``."""
        return _named(vars(self))

    def table(self) -> str:
        """For the terminal."""
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
        whole = name != "hours"
        plain[name] = round(value.value) if whole else value.value
        if value.error:
            plain[f"{name}_error"] = math.ceil(value.error) if whole else value.error
    return plain
