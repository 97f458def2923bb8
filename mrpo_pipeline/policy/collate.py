"""How a micro-batch's token ids are laid out for the model: two padded rows for each pair, or one row for all pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mrpo_pipeline.dataset.examples import Batch
from mrpo_pipeline.dataset.ragged_ids import Ids

# Right padding is seen by no real token of a causal model, so any id of the vocabulary serves.
PAD = 0

# Tokens of a pair's prompt, of its chosen completion and of its rejected one, as they stand in the shared row.
Segment = tuple[int, int, int]


def two_rows(batch: Batch) -> dict[str, Any]:
    """B pairs as 2·B right-padded rows, the B chosen ones first.

    The last token of a row is left out, for nothing is predicted from it.

    Returns:
        ``input_ids`` (2B, T); for each of the M scored completion tokens ``sources`` (M,): where in the flattened rows it is
        predicted, ``targets`` (M,): the token, and ``completions`` (M,): which of the ``count`` = 2·B completions it is
        part of.
    """
    completions = [*batch["chosen"], *batch["rejected"]]
    prompts = batch["prompts"] * 2
    counts, starts = _counts(completions), _counts(prompts)
    width = int((starts + counts).max()) - 1
    input_ids = np.full((len(prompts), width), PAD, dtype=np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        input_ids[row, : len(prompt)] = prompt
        input_ids[row, len(prompt) : len(prompt) + len(completion) - 1] = completion[:-1]
    sources = np.repeat(np.arange(len(prompts)) * width + starts - 1, counts) + _within(counts)
    return _tensors(batch, input_ids, sources, completions, counts)


def shared_row(batch: Batch) -> dict[str, Any]:
    """B pairs as one row without padding: prompt, chosen completion, rejected completion, and so on.

    Both completions are numbered on from the prompt's end, and the last token of each is left out. Attention has to keep
    them apart, see ``pair_attention``.

    Returns:
        as :func:`two_rows`, ``input_ids`` being (1, N), with ``position_ids`` (1, N) and ``segments``: for each pair the
        numbers of its tokens.
    """
    chosen, rejected = batch["chosen"], batch["rejected"]
    completions = [*chosen, *rejected]
    counts, prompts = _counts(completions), _counts(batch["prompts"])
    pairs = len(prompts)
    sizes = np.stack([prompts, counts[:pairs] - 1, counts[pairs:] - 1], axis=1)  # (B, 3)
    starts = np.concatenate([[0], sizes.sum(axis=1).cumsum()[:-1]])
    parts = (part for p, c, r in zip(batch["prompts"], chosen, rejected, strict=True) for part in (p, c[:-1], r[:-1]))
    input_ids = np.concatenate(list(parts)).astype(np.int64)
    first = np.stack([np.zeros_like(prompts), prompts, prompts], axis=1)
    position_ids = np.repeat(first.ravel(), sizes.ravel()) + _within(sizes.ravel())
    # A completion's first token is predicted from the prompt's last, and the others from the one before them; of the
    # rejected completion these do not follow each other in the row.
    last_of_prompt = starts + prompts - 1
    before_second = np.concatenate([last_of_prompt, last_of_prompt + sizes[:, 1]])
    within = _within(counts)
    sources = np.repeat(before_second, counts) + within
    is_first = within == 0
    sources[is_first] = np.tile(last_of_prompt, 2)
    return _tensors(batch, input_ids[None], sources, completions, counts) | {
        "position_ids": torch.from_numpy(position_ids[None]),
        "segments": [(int(p), int(c), int(r)) for p, c, r in sizes],
    }


def _counts(rows: Iterable[Ids]) -> npt.NDArray[np.int64]:
    return np.array([len(ids) for ids in rows], dtype=np.int64)


def _within(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, … of each run, for runs of these lengths one after another."""
    within: npt.NDArray[np.int64] = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return within


def _tensors(
    batch: Batch,
    input_ids: npt.NDArray[np.int64],
    sources: npt.NDArray[np.int64],
    completions: list[Ids],
    counts: npt.NDArray[np.int64],
) -> dict[str, Any]:
    targets = np.concatenate(completions).astype(np.int64)
    numbers = np.repeat(np.arange(len(counts)), counts)
    scored = batch["scored"]
    if scored is not None:
        sources, targets, numbers = sources[scored], targets[scored], numbers[scored]
    return {
        "input_ids": torch.from_numpy(input_ids),
        "sources": torch.from_numpy(sources),
        "targets": torch.from_numpy(targets),
        "completions": torch.from_numpy(numbers),
        "count": len(counts),
    }
