"""A step whose loss or gradient is not finite: what is left for the person who looks into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.files.atomic import write_whole_json


class BrokenStepError(RunError):
    """A loss or gradient is no number: the weights that training began with may hold such numbers already."""


def require_finite_sums(chosen: Any, rejected: Any, pair_ids: Sequence[str]) -> None:
    """Refuse to make figures of a policy's log-probs where some are not finite.

    Args:
        chosen, rejected: (N,) tensors, nats. pair_ids: N.

    Raises:
        RunError: with the pairs' count and the first ones' ids.
    """
    bad = (~(chosen.isfinite() & rejected.isfinite())).nonzero().flatten().tolist()
    if bad:
        named = ", ".join(pair_ids[i] for i in bad[:10]) + (", …" if len(bad) > 10 else "")
        raise RunError(
            f"The policy's log-probs are not finite on {len(bad):,} of {len(pair_ids):,} held-out pairs ({named}): figures of them would "
            "be no numbers. Look at these pairs and at the weights; checkpoints written before are good. training.bf16 "
            "instead of fp16, or a lower training.learning_rate, mends this where training has driven the weights off."
        )


def broken_step(
    arguments: Any, step: int, batches: Sequence[tuple[Sequence[str], float]], grad_norm: float | None
) -> BrokenStepError:
    """Write down the pairs of the step, and tell where.

    Args:
        arguments: Trainer's, for the output folder and the process. step: counted from 1.
        batches: the pairs' ids and the loss of each micro-batch of this process.
    """
    loss = sum(part for _, part in batches)
    path = _write(
        arguments,
        {
            "step": step,
            "loss": str(loss),
            "grad_norm": str(grad_norm),
            "pair_ids": [pair for pairs, _ in batches for pair in pairs],
            "pair_ids_of_broken_losses": [pair for pairs, part in batches if part - part != 0 for pair in pairs],
        },
    )
    what = f"the loss is {loss}" if loss - loss != 0 else "the gradient is not finite"
    return BrokenStepError(
        f"Training stopped in step {step}: {what}. The pairs of that step are in {path}; the weights were not "
        "changed by it, and checkpoints written before are good. Look at those pairs; a lower training.learning_rate, "
        "training.bf16 instead of fp16, or a model whose log-probs are finite on them mends this."
    )


def broken_weights(arguments: Any, step: int, pair_ids: Sequence[str]) -> RunError:
    """Write down the pairs of the step that left weights which are not finite, and tell where.

    Args:
        step: the last one, counted from 1. pair_ids: its pairs on this process.
    """
    path = _write(arguments, {"step": step, "weights": "not finite", "pair_ids": list(pair_ids)})
    return RunError(
        f"Training stopped after step {step}: it left weights of the adapter that are not finite, and they were not saved. The pairs "
        f"of that step are in {path}; checkpoints written before are good. A lower training.learning_rate, or training.bf16 instead "
        "of fp16, mends this."
    )


def _write(arguments: Any, record: dict[str, Any]) -> Path:
    name = "nan_batch.json" if arguments.world_size == 1 else f"nan_batch-{arguments.process_index}.json"
    path = Path(arguments.output_dir) / name
    write_whole_json(path, record)
    return path
