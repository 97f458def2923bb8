"""Stop on numbers that are not finite, and record the pairs of the step for diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.files.atomic import write_whole_json


class BrokenStepError(RunError):
    """A loss or gradient is not finite. The weights that training started from may be the cause."""


def require_finite_sums(chosen: Any, rejected: Any, pair_ids: Sequence[str]) -> None:
    """Refuse to compute metrics from a policy's log-probs if some are not finite.

    Args:
        chosen, rejected: (N,) tensors, nats. pair_ids: N.

    Raises:
        RunError: with the number of such pairs and the ids of the first ones.
    """
    bad = (~(chosen.isfinite() & rejected.isfinite())).nonzero().flatten().tolist()
    if bad:
        named = ", ".join(pair_ids[i] for i in bad[:10]) + (", …" if len(bad) > 10 else "")
        raise RunError(
            f"The policy's log-probs are not finite on {len(bad):,} of {len(pair_ids):,} held-out pairs ({named}): metrics of them are "
            "undefined. Check these pairs and the weights; checkpoints written before are good. If training made the weights diverge, "
            "set training.bf16 instead of fp16, or a lower training.learning_rate."
        )


class StepWatch:
    """The micro-batches of an optimizer step on this process, checked for losses, gradients and weights that are not finite.

    Args:
        arguments: ``transformers.TrainingArguments``, for the output folder and the rank.
        pair_ids: of all training pairs.
    """

    def __init__(self, arguments: Any, pair_ids: Sequence[str]) -> None:
        self._arguments, self._pair_ids = arguments, pair_ids
        self._batches: list[tuple[list[int], Tensor]] = []
        self._last_pairs: list[int] = []

    def add(self, indices: list[int], loss: Tensor) -> None:
        """Record a micro-batch of the running step: indices of its pairs, and its loss."""
        self._batches.append((indices, loss))

    def end_step(self, step: int, grad_norm: Any, *, scaled: bool) -> None:
        """Check the loss and the gradient of a step before the weights are updated.

        Args:
            step: counted from 1. grad_norm: None if Trainer does not compute it.
            scaled: whether a gradient scaler (fp16) is in use. It skips steps with infinite gradients to find its scale.

        Raises:
            BrokenStepError: with the step's pairs in a file.
        """
        loss = torch.stack([part for _, part in self._batches]).sum()
        watched = loss if scaled or grad_norm is None else loss + grad_norm
        if not bool(torch.isfinite(watched)):
            raise self._broken_step(step, float(loss), grad_norm)
        self._last_pairs = [index for indices, _ in self._batches for index in indices]
        self._batches.clear()

    def _broken_step(self, step: int, loss: float, grad_norm: Any) -> BrokenStepError:
        broken = [index for indices, part in self._batches if not part.isfinite() for index in indices]
        path = self._write(
            {
                "step": step,
                "loss": str(loss),
                "grad_norm": str(None if grad_norm is None else float(grad_norm)),
                "pair_ids": self._ids(index for indices, _ in self._batches for index in indices),
                "pair_ids_of_broken_losses": self._ids(broken),
            }
        )
        what = f"the loss is {loss}" if loss - loss != 0 else "the gradient is not finite"
        return BrokenStepError(
            f"Training stopped in step {step}: {what}. The pairs of that step are in {path}; it did not change the weights, and "
            "checkpoints written before are good. Check those pairs; or set a lower training.learning_rate, training.bf16 instead of "
            "fp16, or a model whose log-probs are finite on them."
        )

    def require_finite_weights(self, model: Any, step: int, accelerator: Any) -> None:
        """Refuse to save an adapter that the last step broke: its loss and gradient may have been finite.

        Raises:
            RunError: on every process, with the step's pairs in a file.
        """
        trained = [getattr(p, "_local_tensor", p) for p in model.parameters() if p.requires_grad]
        broken = torch.stack([~torch.isfinite(one.detach()).all() for one in trained]).any().float()
        if self._arguments.world_size > 1:
            broken = accelerator.reduce(broken, "sum")
        if not bool(broken):
            return
        path = self._write({"step": step, "weights": "not finite", "pair_ids": self._ids(self._last_pairs)})
        raise RunError(
            f"Training stopped after step {step}: it left adapter weights that are not finite, and they were not saved. The pairs of "
            f"that step are in {path}; checkpoints written before are good. Set a lower training.learning_rate, or training.bf16 "
            "instead of fp16."
        )

    def _ids(self, indices: Any) -> list[str]:
        return [self._pair_ids[index] for index in indices]

    def _write(self, record: dict[str, Any]) -> Path:
        several = self._arguments.world_size > 1
        name = f"nan_batch-{self._arguments.process_index}.json" if several else "nan_batch.json"
        path = Path(self._arguments.output_dir) / name
        write_whole_json(path, record)
        return path
