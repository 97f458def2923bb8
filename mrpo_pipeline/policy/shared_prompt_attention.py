"""Attention over a row that holds many pairs, each prompt once: two completions of a prompt do not see each other.

Each pair is computed by itself: prompt and chosen completion as one causal sequence, then the rejected completion's
queries against prompt and rejected completion. That is what a causal model computes for the two as rows of their own,
sliding window and score cap included, with no padding and with the prompt's own part once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrpo_pipeline.policy.collate import Segment

NAME = "mrpo_pairs"

# Arguments of transformers' attention calls that are taken up here, or that change nothing in training without a cache.
# Whatever else a layer hands over (a position bias, attention sinks) would be left out without a word.
_TAKEN = {
    *("position_ids", "position_embeddings", "cache_position", "past_key_values", "past_key_value", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "head_mask", "is_causal"),
}


class NotShareableError(Exception):
    """Why a model cannot take a shared row."""


class Row:
    """One row's pairs, and the masks that its layers have in common."""

    def __init__(self, segments: Sequence[Segment], *, variable_length: bool) -> None:
        self.segments = segments
        self.variable_length = variable_length
        # Prompt and chosen completion, then rejected completion, pair by pair.
        self.sizes = [size for p, c, r in segments for size in (p + c, r)]
        self.longest = max(p + max(c, r) for p, c, r in segments)
        self._made: dict[Any, Any] = {}

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """(queries, keys) to add to the scores: the last query stands at the last key, and sees ``window`` keys at most."""
        key = (queries, keys, window, like.dtype, like.device)
        if key not in self._made:
            behind = torch.arange(keys - queries, keys, device=like.device)[:, None] - torch.arange(
                keys, device=like.device
            )
            hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
            self._made[key] = torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill_(
                hidden, float("-inf")
            )
        found: Tensor = self._made[key]
        return found

    def bounds(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """For a variable-length kernel: bounds of the queries and of the keys (2B + 1,), where the keys stand in the row,
        and the longest of each."""
        if "bounds" not in self._made:
            places, keys, start = [], [], 0
            for p, c, r in self.segments:
                places += [torch.arange(start, start + p + c), torch.arange(start, start + p)]
                places.append(torch.arange(start + p + c, start + p + c + r))
                keys += [p + c, p + r]
                start += p + c + r
            ends = [torch.tensor([0, *itertools.accumulate(sizes)]) for sizes in (self.sizes, keys)]
            self._made["bounds"] = (
                *(end.to(device, torch.int32) for end in ends),
                torch.cat(places).to(device),
                max(self.sizes),
                max(keys),
            )
        found: tuple[Tensor, Tensor, Tensor, int, int] = self._made["bounds"]
        return found


class PairAttention:
    """Puts this attention in the place of a model's own while a shared row is computed.

    A layer asks the configuration which attention it has in every call, in the recomputing ones of gradient checkpointing
    too, so it stays in place until the backward pass is done: see ``begin`` and ``end``.

    Raises:
        NotShareableError: where no layer asks.
    """

    def __init__(self, model: nn.Module) -> None:
        from transformers import AttentionInterface

        configs: dict[int, Any] = {id(found): found for m in model.modules() if (found := getattr(m, "config", None))}
        attentions = [(config, getattr(config, "_attn_implementation_internal", None)) for config in configs.values()]
        self.own = [(config, attention) for config, attention in attentions if attention is not None]
        if not self.own:
            raise NotShareableError("its attention cannot be exchanged")
        # Half-precision rows on a GPU go through one kernel; elsewhere, and where that kernel fails, pair by pair.
        self.variable_length = True
        AttentionInterface.register(NAME, attend)

    def begin(self, segments: Sequence[Segment]) -> None:
        global _row
        _row = Row(segments, variable_length=self.variable_length)
        for config, _ in self.own:
            config._attn_implementation_internal = NAME

    def end(self) -> None:
        """The model's own attention again; nothing happens where it is in place."""
        global _row
        if _row is None:
            return
        _row = None
        for config, own in self.own:
            config._attn_implementation_internal = own

    @contextmanager
    def over(self, segments: Sequence[Segment]) -> Iterator[None]:
        self.begin(segments)
        try:
            yield
        finally:
            self.end()


# The row that is being computed. transformers' layers hand nothing of ours through, and a process has one model at work.
_row: Row | None = None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """transformers' attention call for one row of pairs: (1, H, N, D) queries, (1, H or fewer, N, D) keys and values.

    Returns:
        (1, N, H, D)

    Raises:
        NotShareableError: for something that the layer wants done and that is not done here.
    """
    row = _row
    if row is None or query.shape[:1] != (1,) or query.shape[2] != sum(row.sizes) or key.shape[2] != query.shape[2]:
        raise NotShareableError("a layer changes the length of the row")
    wanted = [name for name, value in given.items() if name not in _TAKEN and value is not None and value is not False]
    if wanted or attention_mask is not None or dropout or given.get("is_causal") is False:
        raise NotShareableError(f"its attention takes {', '.join(wanted) or 'a mask of its own'}")
    window = None if sliding_window is None or sliding_window >= row.longest else int(sliding_window)
    half = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    if row.variable_length and half and softcap is None and value.shape[-1] == query.shape[-1]:
        return _in_one_kernel(row, query, key, value, scaling, window), None
    return _pair_by_pair(row, query, key, value, scaling, window, softcap), None


def _pair_by_pair(
    row: Row, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, cap: float | None
) -> Tensor:
    # One split instead of many slices: the backward pass of a slice fills a tensor of the whole row.
    queries, keys, values = (torch.split_with_sizes(tensor, row.sizes, dim=2) for tensor in (query, key, value))
    parts = []
    for number, (prompt, _, rejected) in enumerate(row.segments):
        ours, theirs = 2 * number, 2 * number + 1
        parts.append(_causal(row, queries[ours], keys[ours], values[ours], scaling, window, cap))
        if rejected:
            seen = torch.cat([keys[ours][:, :, :prompt], keys[theirs]], dim=2)  # (1, H, P + R, D)
            given = torch.cat([values[ours][:, :, :prompt], values[theirs]], dim=2)
            parts.append(_causal(row, queries[theirs], seen, given, scaling, window, cap))
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1)


def _causal(
    row: Row, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, cap: float | None
) -> Tensor:
    """(1, H, Q, D): the queries are those of the last Q keys."""
    queries, keys = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    narrow = window is not None and keys > window
    if cap is not None:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = cap * torch.tanh(scores / cap) + row.mask(queries, keys, window if narrow else None, scores)
        # As transformers' eager attention has it.
        return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value
    if queries == keys and not narrow:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1)
    mask = row.mask(queries, keys, window if narrow else None, query)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=groups > 1)


def _in_one_kernel(
    row: Row, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """Flash attention over sequences of uneven length, queries at the end of their keys; (1, N, H, D)."""
    from torch.nn.attention.varlen import varlen_attn

    query_bounds, key_bounds, places, longest_query, longest_key = row.bounds(query.device)
    found = varlen_attn(
        query[0].transpose(0, 1).contiguous(),  # (N, H, D)
        key[0].transpose(0, 1).index_select(0, places),
        value[0].transpose(0, 1).index_select(0, places),
        query_bounds,
        key_bounds,
        longest_query,
        longest_key,
        scale=scaling,
        # A key that is `window` behind the query is the first that it does not see.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)
    return found[None]
