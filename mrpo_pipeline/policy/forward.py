"""The policy's forward pass: a batch of pairs to completion log-probs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mrpo_pipeline.dataset.examples import Batch
from mrpo_pipeline.models.completion_forward import CompletionForward
from mrpo_pipeline.policy.collate import lay_out_pairs


class PolicyForward(CompletionForward):
    """Sums of completion log-probs; replaces the model's ``forward``.

    It replaces the method because mixed precision, DDP and FSDP wrap the model's own call.
    """

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The arguments of a call for a batch."""
        return lay_out_pairs(batch, self.rows)

    def __call__(self, sides: Tensor | None = None, **rows: Any) -> Tensor:
        """Sum the log-probs of each completion.

        Args:
            sides: (2B,) index of each pair's chosen completion, then of each rejected one; None for all C completions in order.
            rows: see ``input_layouts``.

        Returns:
            (2B,) or (C,) nats, float64.
        """
        sums = self.sums(**rows)
        return sums if sides is None else sums.index_select(0, sides)
