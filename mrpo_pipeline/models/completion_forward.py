"""A model's forward pass over prompts and their completions, to the log-probs of the completions' tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrpo_pipeline.models.head import Head
from mrpo_pipeline.models.input_layouts import Group, Segment, plain_rows, shared_row
from mrpo_pipeline.models.shared_prompt_attention import SharedPromptAttention


class CompletionForward:
    """Log-probs of completions without holding their logits; with ``attention``, each prompt is computed once.

    Args:
        attention: separates completions in a shared row; None: rows are not shared.
        chunked_head: False holds the logits of all completion tokens at once, for comparison.
    """

    def __init__(
        self, head: Head, attention: SharedPromptAttention | None = None, *, chunked_head: bool = True
    ) -> None:
        self.head = head
        self.attention = attention
        self.chunked_head = chunked_head

    @property
    def is_shared(self) -> bool:
        """Whether a prompt is run once for all of its completions."""
        return self.attention is not None

    def rows(self, groups: Sequence[Group]) -> dict[str, Any]:
        """The groups as model input: the arguments of :meth:`sums` besides ``count``."""
        return shared_row(groups) if self.is_shared else plain_rows(groups)

    def token_logps(
        self,
        input_ids: Tensor,
        sources: Tensor,
        targets: Tensor,
        position_ids: Tensor | None = None,
        segments: Sequence[Segment] | None = None,
    ) -> Tensor:
        """(M,) float32 log-probs in nats of the scored tokens, completion by completion; differentiable.

        No attention mask is passed: padding is on the right, where a causal model's real tokens do not attend, and
        without a mask attention takes its faster causal path.

        With ``segments`` and a gradient, the shared row's attention stays in place until ``release``, because gradient
        checkpointing recomputes layers in the backward pass.

        Args: see ``input_layouts``.
        """
        if self.head.is_plain:
            width = input_ids.shape[1]
            return self.head.completion_logps(input_ids, sources // width, sources % width, targets)
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
        return self.head.token_logps(predicting, targets, chunked=self.chunked_head)

    def sums(self, completions: Tensor, count: int, **rows: Any) -> Tensor:
        """(C,) nats, the sum of each completion's log-probs, in ``sum_dtype``: in float32, sums of thousands of nats would be
        accurate to 5e-4 only."""
        logps = self.token_logps(**rows)
        dtype = sum_dtype(logps.device)
        return logps.new_zeros(count, dtype=dtype).index_add(0, completions, logps.to(dtype))

    def release(self) -> None:
        """Restore the model's own attention; call it after the backward pass."""
        if self.attention is not None:
            self.attention.end()


def sum_dtype(device: torch.device) -> torch.dtype:
    """Dtype of sums over tokens and pairs: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the batch's tensors to a device; counts and indices stay plain numbers."""
    if device.type == "cpu":
        return batch
    moved = dict(batch)
    for key, value in batch.items():
        if isinstance(value, Tensor):
            narrow = device.type == "mps" and value.dtype == torch.float64
            moved[key] = (value.float() if narrow else value).to(device, non_blocking=True)
    return moved
