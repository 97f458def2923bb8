"""A plan for the terminal."""

from __future__ import annotations

from mrpo_pipeline.plan.extrapolation import Estimate
from mrpo_pipeline.plan.result import DataPlan, Plan, ReferencePlan, TrainingPlan

UNKNOWN = "?"


def plan_table(plan: Plan) -> str:
    """Three short tables: data, references, training; and what the figures assume."""
    unknown = [(one.name, reason) for one in plan.references for reason in one.unknown]
    unknown += [("training", reason) for reason in (plan.training.unknown if plan.training else [])]
    parts = [
        _data(plan.data),
        _references(plan.references),
        _training(plan.training, plan.device) if plan.training else [],
        [f"{text}." for text in plan.short_contexts],
        [*plan.notices, *(f"{name}: unknown: {reason}" for name, reason in unknown)],
        [*_estimates_notes(plan), *_hours_notes(plan), *_memory_notes(plan)],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _data(data: DataPlan) -> list[str]:
    splits = ", ".join(f"{name} {split.pairs:,}" for name, split in data.splits.items())
    lines = [
        f"{data.pairs:,} pairs ({splits}) of {data.prompts:,} prompts in {data.rows:,} rows",
        f"{count(data.completions)} distinct completions to score for each reference, where the pairs have {2 * data.pairs:,} sides",
    ]
    lines += [f"  rows left out: {number:,} ({reason})" for reason, number in data.bad_rows.items()]
    for name, split in data.splits.items():
        lines += [f"  {name}: {count(dropped)} pairs dropped ({reason})" for reason, dropped in split.dropped.items()]
        cuts = ((split.cut_prompts, "pairs with a cut prompt"), (split.cut_completions, "completions cut"))
        lines += [f"  {name}: {count(number)} {what}" for number, what in cuts if number.value]
    return lines + [f"  {notice}" for notice in data.notices]


def _references(references: list[ReferencePlan]) -> list[str]:
    header = [
        "reference", "cached", "to score", "too long", "tokens", "of completions", "cache", "memory", "FLOPs", "hours",
    ]  # fmt: skip
    body = [
        [
            one.name, count(one.cached), count(one.to_score), count(one.unfit), count(one.tokens),
            count(one.completion_tokens), size(one.cache_bytes), _memory_of(one), flops(one.flops), hours(one.hours),
        ]
        for one in references
    ]  # fmt: skip
    if len(references) > 1:
        tokens, completions, cache, operations, time = (
            _sum([getattr(one, name) for one in references])
            for name in ("tokens", "completion_tokens", "cache_bytes", "flops", "hours")
        )
        body.append(
            ["together", "", "", "", count(tokens), count(completions), size(cache), "", flops(operations), hours(time)]
        )
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    grid = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in [header, ["-" * width for width in widths], *body]
    ]
    return ["stage one: score-refs", *grid, *(f"  {_details(one)}" for one in references)]


def _details(one: ReferencePlan) -> str:
    parts = [f"{one.name}: {one.model}, {one.engine}"]
    if one.dtype:
        parts.append(one.dtype + (f" ({one.quantization})" if one.quantization else ""))
    if one.parameters is not None and one.active_parameters is not None:
        active = f", {short(one.active_parameters)} of them for a token"
        parts.append(f"{short(one.parameters)} parameters" + active * (one.active_parameters != one.parameters))
    parts += [f"context {one.context_tokens:,}"] if one.context_tokens is not None else []
    parts += [f"longest {one.longest_tokens:,} tokens"] if one.longest_tokens else []
    memory = one.memory
    if memory is not None:
        room = f"{size(memory.kv_cache_bytes)} ({size(memory.kv_bytes_per_token)} a token)"
        pieces = {
            "weights": size(memory.weights_bytes),
            "activations": memory.activation_bytes is not None and size(memory.activation_bytes),
            "prompt log-probs": memory.logprob_block_bytes is not None and size(memory.logprob_block_bytes),
            "room for keys and values": memory.logprob_block_bytes is not None and room,
            "packed weights": memory.copies_bytes and size(memory.copies_bytes),
            "interpreter, libraries and tokenizer": memory.process_bytes and size(memory.process_bytes),
        }
        parts.append(" + ".join(f"{what} {text}" for what, text in pieces.items() if text))
    return ", ".join(parts)


def _memory_of(one: ReferencePlan) -> str:
    if one.memory is None:
        return "-" if one.longest_tokens == 0 else UNKNOWN
    return size(one.memory.peak_bytes) + ("" if one.memory.fits is not False else " !")


def _training(training: TrainingPlan, device: str) -> list[str]:
    lines = [
        "stage two: train",
        f"  {count(training.pairs)} pairs, {count(training.tokens_per_epoch)} tokens an epoch; {training.steps:,} steps of "
        f"{training.pairs_per_step:,} pairs ({training.epochs:.3g} × all of them)",
    ]
    if training.parameters is not None and training.trainable_parameters is not None:
        share = training.trainable_parameters / training.parameters
        lines.append(
            f"  {training.model}, {training.dtype}: {short(training.parameters)} parameters, "
            f"{training.trainable_parameters:,} trained ({share:.2%})"
        )
    memory = training.memory
    if memory is not None:
        checkpointed = "with" if training.gradient_checkpointing else "without"
        lines.append(
            f"  memory at its peak about {size(memory.resident_bytes)}; alive at once {size(memory.peak_bytes)}: weights "
            f"{size(memory.weights_bytes)}, adapter {size(memory.lora_bytes)}, gradients {size(memory.gradient_bytes)}, "
            f"optimizer {size(memory.optimizer_bytes)}, "
            f"activations {size(memory.activation_bytes)} ({checkpointed} gradient checkpointing; {training.batch_pairs} "
            f"pairs of up to {training.batch_longest_tokens:,} tokens); and about {size(memory.process_bytes)} for the process"
        )
        if memory.fits is False:
            lines.append(f"  this does NOT fit the memory of {'the GPU' if device == 'gpu' else 'this machine'}")
    if training.flops is not None:
        time = f", {hours(training.hours)} hours" if training.hours is not None else ""
        lines.append(f"  {flops(training.flops)} FLOPs{time}")
    return lines


def _estimates_notes(plan: Plan) -> list[str]:
    data, lines = plan.data, []
    if data.sampled_share < 1:
        lines.append(
            f"Rows, pairs and prompts are counted; figures with ± are estimated from the {data.sampled_pairs:,} pairs of one prompt "
            f"in {round(1 / data.sampled_share):,} (95% interval; --exact counts everything)."
        )
    if any(one.cache_bytes and one.cache_bytes.error for one in plan.references):
        lines.append("Cache sizes come from real rows as they are written, and the measured size of a log-prob.")
    return lines


def _hours_notes(plan: Plan) -> list[str]:
    """What the hours assume."""
    if plan.gpu is not None:
        gpu = plan.gpu
        number = f"{gpu.count} × {gpu.label}" if gpu.count > 1 else f"one {gpu.label}"
        if gpu.peak_tflops is None:
            return [
                f"No hours: the speed of this machine's {gpu.label} ({size(gpu.memory_bytes)}) is not in the table (--gpu NAME takes "
                "another's, and --efficiency corrects it)."
            ]
        return [f"Hours are for {number} at {gpu.efficiency:.0%} of {gpu.peak_tflops:,.0f} TFLOPS (dense bfloat16)."]
    if plan.cpu is None or not plan.cpu.gflops:
        return []
    speeds = ", ".join(f"{speed:,.0f} GFLOPS in {dtype}" for dtype, speed in plan.cpu.gflops.items())
    threads = f"{plan.cpu.threads} thread{'s' * (plan.cpu.threads != 1)}"
    return [
        f"Hours are for this machine's CPU, {threads}, at {plan.cpu.efficiency:.0%} of its matrix products: {speeds}, measured just "
        "now, and nothing else running (--gpu NAME for a GPU)."
    ]


def _memory_notes(plan: Plan) -> list[str]:
    where = plan.gpu.label if plan.gpu else "this machine's CPU (--gpu NAME for a GPU)"
    lines = [f"Memory is for one process on {where}."]
    memory = plan.training.memory if plan.training is not None else None
    if memory is not None and memory.peak_bytes and memory.resident_bytes != memory.peak_bytes + memory.process_bytes:
        lines.append(
            "In training glibc's malloc holds more than what is alive, by a factor that was measured; "
            "MALLOC_MMAP_THRESHOLD_=131072 in the environment makes it give memory back, and costs about a quarter more time."
        )
    return lines


def _sum(found: list[Estimate | None]) -> Estimate | None:
    known = [one for one in found if one is not None]
    return (
        Estimate(sum(one.value for one in known), sum(one.error for one in known)) if len(known) == len(found) else None
    )


def count(found: Estimate | None) -> str:
    """A number of things."""
    return UNKNOWN if found is None else f"{round(found.value):,}{_error(found)}"


def size(found: Estimate | int | None) -> str:
    """Bytes, in the decimal units of disks."""
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
    """A number of parameters as people say it: 8.03 B."""
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
