"""Layouts of prompts and completions as model input: a padded row for each completion, or one shared row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

# No real token of a causal model attends to right padding, so any id of the vocabulary works.
PAD = 0

# Tokens of a prompt, then of each of its completions, in the order of the shared row.
Segment = tuple[int, ...]


class Group(NamedTuple):
    """A prompt and one or more completions of it. The prompt may be empty if no completion's first token is scored."""

    prompt: Ids
    completions: Sequence[Ids]
    scored: Sequence[Mask | None]
    """For each completion, the mask (T,) of its scored tokens; None: all."""

    @property
    def counts(self) -> list[int]:
        """Scored tokens of each completion."""
        pairs = zip(self.completions, self.scored, strict=True)
        return [len(ids) if scored is None else int(scored.sum()) for ids, scored in pairs]


Layout = Callable[[Sequence[Group]], dict[str, Any]]


def plain_rows(groups: Sequence[Group]) -> dict[str, Any]:
    """C completions as C right-padded rows, each behind its prompt, in the order of the groups.

    The last token of a row is left out, since nothing is predicted from it.

    Returns:
        ``input_ids`` (C, T); for each of the M scored completion tokens ``sources`` (M,): index in the flattened rows at which
        it is predicted, ``targets`` (M,): its id, and ``completions`` (M,): index of its completion; ``count`` = C.
    """
    rows = [(group.prompt, completion) for group in groups for completion in group.completions]
    counts, starts = _lengths(completion for _, completion in rows), _lengths(prompt for prompt, _ in rows)
    width = int((starts + counts).max()) - 1
    input_ids = np.full((len(rows), width), PAD, dtype=np.int64)
    for row, (prompt, completion) in enumerate(rows):
        input_ids[row, : len(prompt)] = prompt
        input_ids[row, len(prompt) : len(prompt) + len(completion) - 1] = completion[:-1]
    sources = np.repeat(np.arange(len(rows)) * width + starts - 1, counts) + _within(counts)
    return _tensors(groups, input_ids, sources, counts)


def shared_row(groups: Sequence[Group]) -> dict[str, Any]:
    """All groups as one row without padding: a prompt, its completions one after another, the next prompt, and so on.

    Positions of every completion continue from the end of its prompt, and the last token of each is left out. Attention has to
    separate them, see ``shared_prompt_attention``.

    Returns:
        as :func:`plain_rows`, but ``input_ids`` (1, N); also ``position_ids`` (1, N) and ``segments``: for each group, the
        number of tokens of its prompt and of each completion.
    """
    segments = [(len(group.prompt), *(len(ids) - 1 for ids in group.completions)) for group in groups]
    sizes = np.array([size for segment in segments for size in segment], dtype=np.int64)
    completions = np.array([len(group.completions) for group in groups])
    is_prompt = np.zeros(len(sizes), dtype=np.bool_)
    is_prompt[np.cumsum(completions + 1) - completions - 1] = True
    input_ids = np.concatenate(
        [ids for group in groups for ids in (group.prompt, *(c[:-1] for c in group.completions))]
    )
    begin = np.zeros_like(sizes)
    begin[~is_prompt] = np.repeat(sizes[is_prompt], completions)
    starts = np.cumsum(sizes) - sizes
    # A completion's first token is predicted from the prompt's last, and the others from the one before them.
    counts = sizes[~is_prompt] + 1
    within = _within(counts)
    sources = np.repeat(starts[~is_prompt] - 1, counts) + within
    sources[within == 0] = np.repeat((starts + sizes)[is_prompt] - 1, completions)
    positions = np.repeat(begin, sizes) + _within(sizes)
    rows = _tensors(groups, input_ids.astype(np.int64)[None], sources, counts, position_ids=positions[None])
    return rows | {"segments": segments}


def _lengths(rows: Iterable[Ids]) -> npt.NDArray[np.int64]:
    return np.array([len(ids) for ids in rows], dtype=np.int64)


def _within(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, … within each of consecutive runs of these lengths."""
    within: npt.NDArray[np.int64] = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return within


def _tensors(
    groups: Sequence[Group],
    input_ids: npt.NDArray[np.int64],
    sources: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    **more: npt.NDArray[np.int64],
) -> dict[str, Any]:
    import torch

    targets = np.concatenate([ids for group in groups for ids in group.completions]).astype(np.int64)
    numbers = np.repeat(np.arange(len(counts)), counts)
    masks = [mask for group in groups for mask in group.scored]
    if any(mask is not None for mask in masks):
        pairs = zip(masks, counts.tolist(), strict=True)
        scored = np.concatenate([np.ones(count, np.bool_) if mask is None else mask for mask, count in pairs])
        sources, targets, numbers = sources[scored], targets[scored], numbers[scored]
    arrays = {"input_ids": input_ids, "sources": sources, "targets": targets, "completions": numbers, **more}
    return {name: torch.from_numpy(array) for name, array in arrays.items()} | {"count": len(counts)}
