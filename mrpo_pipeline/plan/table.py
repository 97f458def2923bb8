"""The plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mrpo_pipeline.plan.extrapolation import Estimate
from mrpo_pipeline.plan.result import DataPlan, Plan, ReferencePlan, TrainingPlan
from mrpo_pipeline.terminal import text_table

UNKNOWN = "?"


def plan_table(plan: Plan) -> str:
    """Data, references, training, and the assumptions behind the figures."""
    unknown = [f"{one.name}: unknown: {reason}" for one in plan.references for reason in one.unknown]
    unknown += [f"training: unknown: {reason}" for reason in (plan.training.unknown if plan.training else [])]
    parts = [
        _data(plan.data, scored=bool(plan.references)),
        _references(plan.references) if plan.references else [],
        _training(plan.training, plan.device) if plan.training else [],
        [f"{text}." for text in plan.short_contexts],
        [*plan.notices, *unknown],
        _assumptions(plan),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _data(data: DataPlan, *, scored: bool) -> list[str]:
    splits = ", ".join(f"{name} {split.pairs:,}" for name, split in data.splits.items())
    lines = [
        f"{data.pairs:,} pairs ({splits}), {data.prompts:,} prompts, {data.rows:,} rows",
        f"{count(data.completions)} distinct completions{' to score per reference' * scored} ({2 * data.pairs:,} sides of pairs)",
    ]
    lines += [f"  rows skipped: {number:,} ({reason})" for reason, number in data.bad_rows.items()]
    for name, split in data.splits.items():
        lines += [f"  {name}: {count(dropped)} pairs dropped ({reason})" for reason, dropped in split.dropped.items()]
        cuts = ((split.cut_prompts, "pairs with a truncated prompt"), (split.cut_completions, "completions truncated"))
        lines += [f"  {name}: {count(number)} {what}" for number, what in cuts if number.value]
    return lines + [f"  {notice}" for notice in data.notices]


def _references(references: list[ReferencePlan]) -> list[str]:
    rows = [[one.name, *(text(getattr(one, name)) for name, text, _ in _COLUMNS.values())] for one in references]
    if len(references) > 1:
        totals = [
            text(_sum([getattr(one, name) for one in references])) if summed else ""
            for name, text, summed in _COLUMNS.values()
        ]
        rows.append(["total", *totals])
    return [
        "stage one: score-refs",
        text_table(["reference", *_COLUMNS], rows),
        *(f"  {_details(one)}" for one in references),
    ]


def _details(one: ReferencePlan) -> str:
    parts = [f"{one.name}: {one.model}", one.engine]
    if one.dtype:
        parts.append(one.dtype + (f" ({one.quantization})" if one.quantization else ""))
    if one.parameters is not None and one.active_parameters is not None:
        active = f" ({short(one.active_parameters)} active)"
        parts.append(f"{short(one.parameters)} parameters" + active * (one.active_parameters != one.parameters))
    parts += [f"context {one.context_tokens:,}"] if one.context_tokens is not None else []
    parts += [f"longest {one.longest_tokens:,} tokens"] if one.longest_tokens else []
    parts += ["does NOT fit the memory"] if one.fits is False else []
    return ", ".join(parts)


def _training(training: TrainingPlan, device: str) -> list[str]:
    lines = [
        "stage two: train",
        f"  {count(training.pairs)} pairs, {count(training.tokens_per_epoch)} tokens per epoch; {training.steps:,} steps of "
        f"{training.pairs_per_step:,} pairs ({training.epochs:.3g} epochs)",
    ]
    memory = training.memory
    if memory is not None and training.parameters is not None:
        trained = memory.trainable_parameters
        checkpointing = "with" if training.gradient_checkpointing else "without"
        lines += [
            f"  {training.model}, {training.dtype}: {short(training.parameters)} parameters, {trained:,} trained "
            f"({trained / training.parameters:.2%})",
            f"  peak memory about {size(memory.resident_bytes)} for the process, of which tensors {size(memory.peak_bytes)}: weights "
            f"{size(memory.weights_bytes)}, adapter and gradients {size(2 * memory.lora_bytes)}, optimizer "
            f"{size(memory.optimizer_bytes)}, activations {size(memory.activation_bytes)} ({checkpointing} gradient checkpointing; "
            f"{memory.batch_pairs} pairs of up to {memory.batch_longest_tokens:,} tokens)",
        ]
        if training.fits is False:
            lines.append(f"  this does NOT fit the memory of {'the GPU' if device == 'gpu' else 'this machine'}")
    if training.flops is not None:
        lines.append(
            f"  {flops(training.flops)} FLOPs" + (f", {hours(training.hours)} hours" if training.hours else "")
        )
    return lines


def _assumptions(plan: Plan) -> list[str]:
    lines = []
    if plan.data.sampled_share < 1:
        lines.append(
            f"Figures with ± are estimates (95% interval) from {plan.data.sampled_pairs:,} pairs, one prompt in "
            f"{round(1 / plan.data.sampled_share):,}; --exact tokenizes all."
        )
    if plan.gpu is not None and plan.gpu["peak_tflops"] is None:
        lines.append(
            f"No hours: the speed of {plan.gpu['label']} is unknown. Name a similar GPU with --gpu, adjust --efficiency."
        )
    elif plan.gpu is not None:
        lines.append(
            f"Hours are for {plan.gpu['count']} × {plan.gpu['label']} at {plan.gpu['efficiency']:.0%} of "
            f"{plan.gpu['peak_tflops']:,.0f} TFLOPS (dense bfloat16)."
        )
    elif plan.cpu is not None and plan.cpu["gflops"]:
        speeds = ", ".join(f"{speed:,.0f} GFLOPS in {dtype}" for dtype, speed in plan.cpu["gflops"].items())
        threads = f"{plan.cpu['threads']} thread{'s' * (plan.cpu['threads'] != 1)}"
        lines.append(
            f"Hours are for this machine's CPU when idle, {threads} at {plan.cpu['efficiency']:.0%} of the measured matrix-product "
            f"speed ({speeds}); --gpu NAME for a GPU."
        )
    lines.append(f"Memory is for one process on {plan.gpu['label'] if plan.gpu else 'this machine, without a GPU'}.")
    memory = plan.training.memory if plan.training is not None else None
    if memory is not None and memory.peak_bytes and memory.resident_bytes != memory.peak_bytes + memory.process_bytes:
        lines.append(
            "Training memory includes freed blocks that glibc's malloc keeps; MALLOC_MMAP_THRESHOLD_=131072 in the environment "
            "returns them, for about a quarter more time."
        )
    return lines


def _sum(found: list[Estimate | None]) -> Estimate | None:
    known = [one for one in found if one is not None]
    total = Estimate(sum(one.value for one in known), sum(one.error for one in known))
    return total if len(known) == len(found) else None


def count(found: Estimate | None) -> str:
    """An integer count, with its error."""
    return UNKNOWN if found is None else f"{round(found.value):,}{_error(found)}"


def size(found: Estimate | int | None) -> str:
    """Bytes in decimal units."""
    if found is None:
        return UNKNOWN
    estimate = found if isinstance(found, Estimate) else Estimate(found)
    return f"{_scaled(estimate.value, ('B', 'kB', 'MB', 'GB', 'TB'))}{_error(estimate)}"


def flops(found: Estimate | None) -> str:
    return UNKNOWN if found is None else f"{found.value:.2e}"


def hours(found: Estimate | None) -> str:
    if found is None:
        return "-"
    return f"{found.value:,.1f}" if found.value >= 0.95 else f"{found.value:.2g}"


def short(number: float) -> str:
    """A number of parameters: 8.03 B."""
    return _scaled(number, ("", "k", "M", "B", "T"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value /= 1000
        power += 1
    digits = 0 if power == 0 else max(0, 3 - len(str(int(value))))
    return f"{value:.{digits}f} {units[power]}".rstrip()


def _error(found: Estimate) -> str:
    return f" ±{min(100 * found.relative_error, 100):.2g}%" if found.error else ""


# Columns of the references' table, with the field and its format; those with True are summed.
_COLUMNS: dict[str, tuple[str, Callable[[Any], str], bool]] = {
    "cached": ("cached", count, False),
    "to score": ("to_score", count, False),
    "too long": ("unfit", count, False),
    "tokens": ("tokens", count, True),
    "completion": ("completion_tokens", count, True),
    "cache": ("cache_bytes", size, True),
    "memory": ("memory", lambda value: size(value.peak_bytes) if value else "-", False),
    "FLOPs": ("flops", flops, True),
    "hours": ("hours", hours, True),
}
