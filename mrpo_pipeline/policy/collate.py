"""Collation: a micro-batch of pairs as prompts with completions, and those as model input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mrpo_pipeline.dataset.examples import Batch
from mrpo_pipeline.models.input_layouts import Group, Ids, Layout, Mask


def lay_out_pairs(batch: Batch, layout: Layout) -> dict[str, Any]:
    """Model input for B pairs.

    Args:
        layout: ``plain_rows`` or ``shared_row``.

    Returns:
        the layout's tensors, and ``sides`` (2B,): index of each pair's chosen completion, then of each rejected one.
    """
    groups, sides = group_pairs(batch)
    return layout(groups) | {"sides": torch.from_numpy(sides)}


def group_pairs(batch: Batch) -> tuple[list[Group], Any]:
    """B pairs as prompts with completions, and the index (2B,) of each side among the completions.

    ``numbers`` (B, 3) of a batch identifies each pair's prompt and sides: equal numbers are one prompt or completion. Without
    it, every pair is one prompt with two completions.
    """
    pairs = len(batch["prompts"])
    numbers = batch.get("numbers")
    if numbers is None:
        numbers = np.stack([np.arange(pairs), 2 * np.arange(pairs), 2 * np.arange(pairs) + 1], axis=1)
    masks = _masks(batch)
    prompts: dict[int, Ids] = {}
    found: dict[int, dict[int, tuple[Ids, Mask | None]]] = {}
    for at, (prompt, *sides) in enumerate(numbers.tolist()):
        prompts[prompt] = batch["prompts"][at]
        for place, (side, number) in enumerate(zip(("chosen", "rejected"), sides, strict=True)):
            found.setdefault(prompt, {})[number] = batch[side][at], masks[place * pairs + at]
    groups = [Group(prompts[one], *zip(*found[one].values(), strict=True)) for one in prompts]
    places = {number: place for place, number in enumerate(n for one in prompts for n in found[one])}
    return groups, np.array([places[number] for number in numbers[:, 1:].T.ravel().tolist()])


def _masks(batch: Batch) -> Sequence[Any]:
    """The mask of scored tokens of each side, chosen sides first; None for all tokens."""
    completions = [*batch["chosen"], *batch["rejected"]]
    if batch["scored"] is None:
        return [None] * len(completions)
    return np.split(batch["scored"], np.cumsum([len(ids) for ids in completions])[:-1])
