"""A plan for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from mrpo_pipeline.plan.estimate import Estimate
from mrpo_pipeline.plan.report import DataPlan, Plan, ReferencePlan, TrainingPlan

UNKNOWN = "?"


def plan_table(plan: Plan) -> str:
    """Three short tables: data, references, training; and what the figures stand on."""
    parts = ["\n".join(_data(plan.data)), _references(plan)]
    if plan.training is not None:
        parts.append("\n".join(_training(plan.training, plan)))
    notes = [f"{one.name}: unknown: {reason}" for one in plan.references for reason in one.unknown] + (
        [f"training: unknown: {reason}" for reason in plan.training.unknown] if plan.training else []
    )
    notes = [*plan.notices, *notes]
    parts += ["\n".join(f"{text}." for text in plan.short_contexts)] if plan.short_contexts else []
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else []), "\n".join(_footnotes(plan))])


def _data(data: DataPlan) -> list[str]:
    splits = ", ".join(f"{name} {split.pairs:,}" for name, split in data.splits.items())
    lines = [f"{data.pairs:,} pairs ({splits}) of {data.prompts:,} prompts in {data.rows:,} rows"]
    sides = 2 * data.pairs
    lines.append(
        f"{count(data.completions)} distinct completions to score for each reference, where the pairs have {sides:,} sides"
    )
    for reason, number in data.bad_rows.items():
        lines.append(f"  rows left out: {number:,} ({reason})")
    for name, split in data.splits.items():
        for reason, dropped in split.dropped.items():
            lines.append(f"  {name}: {count(dropped)} pairs dropped ({reason})")
        if split.cut_prompts.value:
            lines.append(f"  {name}: {count(split.cut_prompts)} pairs with a cut prompt")
        if split.cut_completions.value:
            lines.append(f"  {name}: {count(split.cut_completions)} completions cut")
    lines += [f"  {notice}" for notice in data.notices]
    return lines


def _references(plan: Plan) -> str:
    header = [
        "reference", "cached", "to score", "too long", "tokens", "of completions", "cache", "memory", "FLOPs", "hours",
    ]  # fmt: skip
    body = [
        [
            one.name, count(one.cached), count(one.to_score), count(one.unfit), count(one.tokens),
            count(one.completion_tokens), size(one.cache_bytes), _memory_of(one), flops(one.flops), hours(one.hours),
        ]
        for one in plan.references
    ]  # fmt: skip
    if len(plan.references) > 1:
        body.append(
            [
                "together", "", "", "", count(_sum([one.tokens for one in plan.references])),
                count(_sum([one.completion_tokens for one in plan.references])),
                size(_sum([one.cache_bytes for one in plan.references])), "",
                flops(_sum([one.flops for one in plan.references])), hours(_sum([one.hours for one in plan.references])),
            ]
        )  # fmt: skip
    lines = [_grid(header, body)]
    for one in plan.references:
        lines.append(_reference_details(one))
    return "\n".join(["stage one: score-refs", *lines])


def _reference_details(one: ReferencePlan) -> str:
    parts = [f"{one.name}: {one.model}, {one.engine}"]
    if one.dtype:
        parts.append(one.dtype + (f" ({one.quantization})" if one.quantization else ""))
    if one.parameters is not None:
        text = f"{short(one.parameters)} parameters"
        if one.active_parameters != one.parameters:
            text += f", {short(one.active_parameters or 0)} of them for a token"
        parts.append(text)
    if one.context_tokens is not None:
        parts.append(f"context {one.context_tokens:,}")
    if one.longest_tokens:
        parts.append(f"longest {one.longest_tokens:,} tokens")
    memory = one.memory
    if memory is not None:
        pieces = [f"weights {size(memory.weights_bytes)}"]
        if memory.activation_bytes is not None:
            pieces.append(f"activations {size(memory.activation_bytes)}")
        if memory.logprob_block_bytes is not None:
            pieces.append(f"prompt log-probs {size(memory.logprob_block_bytes)}")
            pieces.append(
                f"room for keys and values {size(memory.kv_cache_bytes)} ({size(memory.kv_bytes_per_token)} a token)"
            )
        if memory.copies_bytes:
            pieces.append(f"packed weights {size(memory.copies_bytes)}")
        if memory.process_bytes:
            pieces.append(f"interpreter, libraries and tokenizer {size(memory.process_bytes)}")
        parts.append(" + ".join(pieces))
    return "  " + ", ".join(parts)


def _training(training: TrainingPlan, plan: Plan) -> list[str]:
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
            where = "the GPU" if plan.device == "gpu" else "this machine"
            lines.append(f"  this does NOT fit the memory of {where}")
    if training.flops is not None:
        told = f"  {flops(training.flops)} FLOPs"
        lines.append(told + (f", {hours(training.hours)} hours" if training.hours is not None else ""))
    return lines


def _footnotes(plan: Plan) -> list[str]:
    lines = []
    if plan.data.sampled_share < 1:
        lines.append(
            f"Rows, pairs and prompts are counted; what stands with ± is estimated from the {plan.data.sampled_pairs:,} pairs "
            f"of every {round(1 / plan.data.sampled_share):,}th prompt (95% interval; --exact counts everything)."
        )
    if any(one.cache_bytes and one.cache_bytes.error for one in plan.references):
        lines.append(
            "Cache sizes come from real rows with log-probs that are drawn: as those that are cached, else as models of that "
            "size give them."
        )
    lines += _hours_notes(plan)
    where = plan.gpu.label if plan.device == "gpu" and plan.gpu else "this machine's CPU (--gpu NAME for a GPU)"
    lines.append(f"Memory is for one process on {where}.")
    memory = plan.training.memory if plan.training is not None else None
    if memory is not None and memory.peak_bytes and memory.resident_bytes != memory.peak_bytes + memory.process_bytes:
        lines.append(
            "In training glibc's malloc holds more than what is alive, by a factor that was measured; "
            "MALLOC_MMAP_THRESHOLD_=131072 in the environment makes it give memory back, and costs about a quarter more time."
        )
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


def _memory_of(one: ReferencePlan) -> str:
    if one.memory is None:
        return "-" if one.longest_tokens == 0 else UNKNOWN
    return size(one.memory.peak_bytes) + ("" if one.memory.fits is not False else " !")


def _sum(found: Sequence[Estimate | None]) -> Estimate | None:
    total = Estimate(0)
    for one in found:
        if one is None:
            return None
        total = total.plus(one)
    return total


def _grid(header: list[str], body: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, ["-" * width for width in widths], *body]
    ]
    return "\n".join(lines)


def count(found: Estimate | None) -> str:
    """A number of things."""
    if found is None:
        return UNKNOWN
    return f"{round(found.value):,}{_error(found)}"


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
    if not found.error:
        return ""
    share = 100 * found.relative_error
    return f" ±{share:.2g}%" if share < 100 else " ±100%"
