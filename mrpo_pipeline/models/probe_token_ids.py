"""Token ids for trial inputs of a model: none stands for an image, padding or the end of a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def ordinary_ids(vocab_size: int, special: Iterable[int], count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """(count,) ids drawn at random from a vocabulary, without the special ones."""
    left_out = sorted({one for one in special if 0 <= one < vocab_size})
    if len(left_out) >= vocab_size:
        left_out = []
    drawn = np.random.default_rng(seed).integers(0, vocab_size - len(left_out), size=count)
    for one in left_out:  # in ascending order: each moves the draws at and above it by one
        drawn += drawn >= one
    return drawn


def special_ids(config: Mapping[str, Any]) -> Iterator[int]:
    """Values of ``pad_token_id``, ``image_token_index`` and similar keys of a model's configuration and its nested ones."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from special_ids(value)
        elif "token" in str(name) and str(name).endswith(("_id", "_ids", "_index")):
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, int) and not isinstance(one, bool):
                    yield one
