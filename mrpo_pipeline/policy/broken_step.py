"""A step whose loss or gradient is not finite: what is left for the person who looks into it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import RunError


def broken_step(
    arguments: Any, step: int, batches: Sequence[tuple[Sequence[str], float]], grad_norm: float | None
) -> RunError:
    """Write down the pairs of the step, and tell where.

    Args:
        arguments: Trainer's, for the output folder and the process. step: counted from 1.
        batches: the pairs' ids and the loss of each micro-batch of this process.
    """
    name = "nan_batch.json" if arguments.world_size == 1 else f"nan_batch-{arguments.process_index}.json"
    path = Path(arguments.output_dir) / name
    loss = sum(part for _, part in batches)
    record = {
        "step": step,
        "loss": str(loss),
        "grad_norm": str(grad_norm),
        "pair_ids": [pair for pairs, _ in batches for pair in pairs],
        "pair_ids_of_broken_losses": [pair for pairs, part in batches if part - part != 0 for pair in pairs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    what = f"the loss is {loss}" if loss - loss != 0 else "the gradient is not finite"
    return RunError(
        f"Training stopped in step {step}: {what}. The pairs of that step are in {path}; the weights were not "
        "changed by it, and checkpoints written before are good. Look at those pairs; a lower training.learning_rate, "
        "training.bf16 instead of fp16, or a model whose log-probs are finite on them mends this."
    )
