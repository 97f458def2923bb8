"""Token ids to try a model on: none of them may ask for an image, pad, or end a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


def ordinary_ids(model: Any, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """(count,) ids of the model's vocabulary, drawn at random; those that its configuration gives a role are left out."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = sorted({one for one in _special_ids(model.config) if 0 <= one < rows})
    if len(special) >= rows:
        special = []
    drawn = np.random.default_rng(seed).integers(0, rows - len(special), size=count)
    for one in special:  # in ascending order: each moves the draws at and above it by one
        drawn += drawn >= one
    return drawn


def _special_ids(config: Any) -> Iterator[int]:
    """Values of ``pad_token_id``, ``image_token_index`` and the like, in nested configurations too."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _special_ids(value)
        elif "token" in name and name.endswith(("_id", "_ids", "_index")):
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, int) and not isinstance(one, bool):
                    yield one
