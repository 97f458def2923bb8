"""The policy's forward pass: from a batch of pairs to the log-probs of its completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrpo_pipeline.dataset.examples import Batch
from mrpo_pipeline.models.head import Head
from mrpo_pipeline.policy.collate import Segment, shared_row, two_rows
from mrpo_pipeline.policy.shared_prompt_attention import PairAttention


class PolicyForward:
    """Sums of completion log-probs, never holding logits; takes the place of the model's own ``forward``.

    It has to be the model's ``forward``, and not a call beside it: mixed precision, DDP and FSDP act on the call of the
    model itself.

    Args:
        attention: what keeps a pair's completions apart in a shared row; None where rows are not shared.
        chunked_head: False holds the logits of all completion tokens at once: for comparison.
    """

    def __init__(self, head: Head, attention: PairAttention | None = None, *, chunked_head: bool = True) -> None:
        self.head = head
        self.attention = attention
        self.chunked_head = chunked_head

    @property
    def is_shared(self) -> bool:
        """Whether a prompt stands once for both of its completions."""
        return self.attention is not None

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """A batch's tokens as this takes them: the arguments of a call."""
        return shared_row(batch) if self.is_shared else two_rows(batch)

    def __call__(
        self,
        input_ids: Tensor,
        sources: Tensor,
        targets: Tensor,
        completions: Tensor,
        count: int,
        position_ids: Tensor | None = None,
        segments: Sequence[Segment] | None = None,
    ) -> Tensor:
        """Sum up each completion.

        No attention mask is given: padding stands on the right, where a causal model's real tokens do not look, and
        without a mask attention takes its faster causal path.

        With ``segments`` the pairs' own attention is in place until ``release`` where a gradient is wanted, for gradient
        checkpointing computes layers again in the backward pass.

        Args:
            see ``layout``.

        Returns:
            (2B,) nats, float64: summed up in float32, thousands of nats would be known to 5e-4 only.
        """
        if self.head.is_plain:
            width = input_ids.shape[1]
            logps = self.head.completion_logps(input_ids, sources // width, sources % width, targets)
            return _sums(logps, completions, count)
        if segments is not None:
            assert self.attention is not None
            self.attention.begin(segments)
        try:
            hidden = self.head.hidden_states(input_ids, position_ids=position_ids)  # (R, T, H)
        except BaseException:
            self.release()
            raise
        if not torch.is_grad_enabled():
            self.release()
        # One index instead of a pair: its backward pass is the cheaper one.
        predicting = hidden.flatten(0, 1).index_select(0, sources)  # (M, H)
        return _sums(self.head.token_logps(predicting, targets, chunked=self.chunked_head), completions, count)

    def release(self) -> None:
        """The model's own attention again: to be called when the backward pass is done."""
        if self.attention is not None:
            self.attention.end()


def _sums(logps: Tensor, completions: Tensor, count: int) -> Tensor:
    dtype = sum_dtype(logps.device)
    return logps.new_zeros(count, dtype=dtype).index_add(0, completions, logps.to(dtype))


def sum_dtype(device: torch.device) -> torch.dtype:
    """In what sums over tokens and pairs are kept: float64, which MPS has not."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on a device; counts and indices stay plain numbers."""
    if device.type == "cpu":
        return batch
    moved = dict(batch)
    for key, value in batch.items():
        if isinstance(value, Tensor):
            narrow = device.type == "mps" and value.dtype == torch.float64
            moved[key] = (value.float() if narrow else value).to(device, non_blocking=True)
    return moved
