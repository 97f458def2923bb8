"""The policy's forward pass: from a batch of pairs to the log-probs of its completions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrpo_pipeline.head import Head
from mrpo_pipeline.policy.examples import Batch


class PolicyForward:
    """Sums of completion log-probs, never holding logits; takes the place of the model's own ``forward``.

    It has to be the model's ``forward``, and not a call beside it: mixed precision, DDP and FSDP act on the call of the
    model itself.
    """

    def __init__(self, head: Head) -> None:
        self.head = head

    def __call__(self, input_ids: Tensor, positions: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Sum up each row's completion.

        No attention mask is given: padding stands on the right, where a causal model's real tokens do not look, and
        without a mask attention takes its faster causal path.

        Args:
            input_ids: (2B, T). positions, targets, rows: (M,), see ``PreferenceExamples.__getitems__``.

        Returns:
            (2B,) nats, float64: summed up in float32, thousands of nats would be known to 5e-4 only.
        """
        if self.head.is_plain:
            logps = self.head.completion_logps(input_ids, rows, positions, targets)
        else:
            hidden = self.head.hidden_states(input_ids)  # (2B, T, H)
            # One index instead of a pair: its backward pass is the cheaper one.
            predicting = hidden.flatten(0, 1).index_select(0, rows * input_ids.shape[1] + positions)  # (M, H)
            logps = self.head.token_logps(predicting, targets)  # (M,)
        # MPS has no float64.
        dtype = torch.float32 if logps.device.type == "mps" else torch.float64
        return logps.new_zeros(len(input_ids), dtype=dtype).index_add(0, rows, logps.to(dtype))


FORWARD_KEYS = ("input_ids", "positions", "targets", "rows")


def forward_inputs(batch: Batch) -> dict[str, Any]:
    """The part of a batch that the model takes."""
    return {key: batch[key] for key in FORWARD_KEYS}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device; counts and indices stay plain numbers."""
    if device.type == "cpu":
        return batch
    moved = dict(batch)
    for key, value in batch.items():
        if isinstance(value, Tensor):
            narrow = device.type == "mps" and value.dtype == torch.float64
            moved[key] = (value.float() if narrow else value).to(device, non_blocking=True)
    return moved
