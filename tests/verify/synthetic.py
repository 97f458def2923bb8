"""A synthetic comparison of cached and recomputed log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mrpo_pipeline.verify.comparison import Compared


def compared(
    cached: Sequence[float], recomputed: Sequence[float], *, prompt: int = 20, more: int = 0, **given: Any
) -> Compared:
    """One completion; by default the ids agree and the row is complete.

    Args:
        prompt: tokens of the prompt. more: additional tokens of the cached prompt.
    """
    count = len(cached)
    fields: dict[str, Any] = {
        "completion_id": "0" * 32,
        "text": "x" * max(count - 1, 0),
        "cached_prompt_tokens": prompt + more,
        "prompt_tokens": prompt,
        "cached_ids": np.arange(count, dtype=np.int32),
        "ids": np.arange(count, dtype=np.int32),
        "complete": True,
        "byte_ends": np.arange(1, count + 1, dtype=np.int32),
        "cached": np.array(cached, np.float32),
        "recomputed": np.array(recomputed, np.float32),
    }
    return Compared(**{**fields, **given})
