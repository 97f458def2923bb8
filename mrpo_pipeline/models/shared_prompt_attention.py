"""Attention over a row of several prompts, each once with all its completions, which do not attend to each other.

Each group is computed separately: prompt and first completion as one causal sequence, then the queries of every other completion
against prompt and itself. A causal model computes the same for completions in separate rows, sliding window and score cap
included; here there is no padding, and the prompt is computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrpo_pipeline.models.input_layouts import Segment

NAME = "mrpo_shared_prompt"

# Arguments of transformers' attention calls that are handled here, or that have no effect without a key cache. Any other
# argument of a layer (a position bias, attention sinks) is refused, since it would be silently ignored.
_TAKEN = {
    *("position_ids", "position_embeddings", "cache_position", "past_key_values", "past_key_value", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "head_mask", "is_causal"),
}

# Keys are copied for the variable-length kernel, the prompt's for each completion: at most this many for each token of the row in
# one call.
_KEYS_PER_TOKEN = 2


class NotShareableError(Exception):
    """The model cannot run a shared row; the text is the reason."""


class Row:
    """One row's groups, and the masks that all layers share."""

    def __init__(self, segments: Sequence[Segment], *, variable_length: bool) -> None:
        self.segments = segments
        self.variable_length = variable_length
        # Prompt and first completion, then each of the others, group by group.
        self.sizes = [size for prompt, first, *others in segments for size in (prompt + first, *others)]
        self.longest = max(prompt + max(completions) for prompt, *completions in segments)
        self._made: dict[Any, Any] = {}

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """(queries, keys) to add to the scores: the last query is at the last key, and sees at most ``window`` keys.

        A slice of one mask that grows to the largest size, so that memory does not grow with the number of completions.
        """
        key = (window, like.dtype, like.device)
        found: Tensor | None = self._made.get(key)
        if found is None or found.shape[0] < queries or found.shape[1] < keys:
            rows, columns = (
                (queries, keys) if found is None else (max(queries, found.shape[0]), max(keys, found.shape[1]))
            )
            behind = torch.arange(-rows, 0, device=like.device)[:, None] - torch.arange(-columns, 0, device=like.device)
            hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
            found = torch.zeros(rows, columns, dtype=like.dtype, device=like.device)
            self._made[key] = found.masked_fill_(hidden, float("-inf"))
        return found[-queries:, -keys:]

    def calls(self, device: torch.device) -> list[Bounds]:
        """Calls of the variable-length kernel, in the order of the row."""
        if "calls" not in self._made:
            self._made["calls"] = [self._bounds(part, device) for part in self._parts()]
        found: list[Bounds] = self._made["calls"]
        return found

    def _sequences(self) -> Iterator[tuple[int, int, range, range]]:
        """For each sequence, positions in the row: start and end of its queries, its prompt's keys, and its own keys."""
        start = 0
        for prompt, *completions in self.segments:
            shared, end = range(start, start + prompt), start + prompt
            for number, completion in enumerate(completions):
                own = range(end, end + completion)
                yield (end if number else start), own.stop, shared, own
                end = own.stop
            start = end

    def _parts(self) -> Iterator[list[tuple[int, int, range, range]]]:
        part: list[tuple[int, int, range, range]] = []
        keys = 0
        for sequence in self._sequences():
            more = len(sequence[2]) + len(sequence[3])
            if part and keys + more > _KEYS_PER_TOKEN * sum(self.sizes):
                yield part
                part, keys = [], 0
            part.append(sequence)
            keys += more
        yield part

    def _bounds(self, part: list[tuple[int, int, range, range]], device: torch.device) -> Bounds:
        queries = [end - start for start, end, _, _ in part]
        keys = [len(shared) + len(own) for _, _, shared, own in part]
        places = torch.tensor([place for _, _, shared, own in part for place in (*shared, *own)])
        ends = [torch.tensor([0, *itertools.accumulate(sizes)]).to(device, torch.int32) for sizes in (queries, keys)]
        return Bounds(
            slice(part[0][0], part[-1][1]), ends[0], ends[1], places.to(device), max(*queries, 1), max(*keys, 1)
        )


class Bounds(NamedTuple):
    """One call of a variable-length kernel for S sequences."""

    queries: slice
    """Positions of the queries in the row."""
    query_ends: Tensor
    """(S + 1,) cumulative numbers of queries, from 0; ``key_ends`` likewise."""
    key_ends: Tensor
    key_places: Tensor
    """(K,) positions of the keys in the row."""
    longest_query: int
    longest_key: int


class SharedPromptAttention:
    """Replaces a model's own attention while a shared row is computed.

    Layers look up their attention in the configuration at every call, also when gradient checkpointing recomputes them, so the
    replacement stays until the backward pass is done: see ``begin`` and ``end``.

    Raises:
        NotShareableError: for a model whose layers do not look up their attention.
    """

    def __init__(self, model: nn.Module) -> None:
        from transformers import AttentionInterface

        configs: dict[int, Any] = {id(found): found for m in model.modules() if (found := getattr(m, "config", None))}
        attentions = [(config, getattr(config, "_attn_implementation_internal", None)) for config in configs.values()]
        self.own = [(config, attention) for config, attention in attentions if attention is not None]
        if not self.own:
            raise NotShareableError("its attention cannot be exchanged")
        # Half-precision rows on a GPU use one kernel; otherwise, and if that kernel fails, completions are computed one by one.
        self.variable_length = True
        AttentionInterface.register(NAME, attend)

    def begin(self, segments: Sequence[Segment]) -> None:
        global _row
        _row = Row(segments, variable_length=self.variable_length)
        for config, _ in self.own:
            config._attn_implementation_internal = NAME

    def end(self) -> None:
        """Restore the model's own attention; no effect if it is in place."""
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


# The row being computed. transformers' layers do not pass our arguments through, and a process computes one row at a time.
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
    """transformers' attention call for one shared row: (1, H, N, D) queries, (1, H or fewer, N, D) keys and values.

    Returns:
        (1, N, H, D)

    Raises:
        NotShareableError: for an argument of the layer that is not supported here.
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
    return _one_by_one(row, query, key, value, scaling, window, softcap), None


def _one_by_one(
    row: Row, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, cap: float | None
) -> Tensor:
    # One split instead of many slices: the backward pass of a slice fills a tensor of the full row.
    parts = iter(
        zip(*(torch.split_with_sizes(tensor, row.sizes, dim=2) for tensor in (query, key, value)), strict=True)
    )
    attended = []
    for prompt, _, *others in row.segments:
        queries, keys, values = next(parts)
        attended.append(_causal(row, queries, keys, values, scaling, window, cap))
        before = keys[:, :, :prompt], values[:, :, :prompt]
        for size in others:
            queries, *own = next(parts)
            if size:
                seen, given = (torch.cat(both, dim=2) for both in zip(before, own, strict=True))  # (1, H, P + C, D)
                attended.append(_causal(row, queries, seen, given, scaling, window, cap))
    return torch.cat([part.transpose(1, 2) for part in attended], dim=1)


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
        # As in transformers' eager attention.
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

    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (N, H, D)
    parts = []
    for call in row.calls(query.device):
        part = varlen_attn(
            queries[call.queries].contiguous(),
            keys.index_select(0, call.key_places),
            values.index_select(0, call.key_places),
            call.query_ends,
            call.key_ends,
            call.longest_query,
            call.longest_key,
            scale=scaling,
            # The nearest key that the query does not see is `window` positions before it.
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(part, Tensor)
        parts.append(part)
    return torch.cat(parts)[None]
