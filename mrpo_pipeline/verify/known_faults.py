"""Confirm a cause by trying it: recompute with one known fault and compare with the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from mrpo_pipeline.engines.base import TokenIds
from mrpo_pipeline.rendering import Rendered
from mrpo_pipeline.verify.comparison import Compared
from mrpo_pipeline.verify.oracle import PlainModel
from mrpo_pipeline.verify.served import ServedModel
from mrpo_pipeline.verify.tolerances import Limits

TRIED = 3  # completions that each fault is tried on: the worst ones


def confirmed_reasons(
    model: PlainModel | ServedModel, compared: Sequence[Compared], rendered: Sequence[Rendered], limits: Limits
) -> list[str]:
    """The faults that reproduce the cached log-probs of the worst completions.

    Args:
        compared: (N,) completions. rendered: (N,) they and their prompts as rendered now.
    """
    with_tokens = [at for at, one in enumerate(compared) if len(one.cached)]
    worst = sorted(with_tokens, key=lambda at: -float(np.abs(compared[at].difference).mean()))[:TRIED]
    if not worst or float(np.abs(compared[worst[0]].difference).max()) <= limits.beyond_rounding:
        return []
    cases = [(compared[at], rendered[at]) for at in worst]
    return [
        f"confirmed: {fault} (so computed, the {len(worst)} worst completions agree with the cache)"
        for fault, change, setting in _faults(model)
        if _explains(model, cases, change, setting, limits)
    ]


def _faults(
    model: PlainModel | ServedModel,
) -> Iterator[tuple[str, Callable[[TokenIds], TokenIds], Callable[[], AbstractContextManager[None]]]]:
    """(description, change of the prompt's ids, change of the model)."""
    yield "the prompt's first token (such as BOS) was doubled", lambda ids: np.concatenate([ids[:1], ids]), nullcontext
    yield "the prompt's first token (such as BOS) was missing", lambda ids: ids[1:], nullcontext
    if model.without_adapter is not None:
        yield "the adapter was not loaded", lambda ids: ids, model.without_adapter


def _explains(
    model: PlainModel | ServedModel,
    cases: Sequence[tuple[Compared, Rendered]],
    change: Callable[[TokenIds], TokenIds],
    setting: Callable[[], AbstractContextManager[None]],
    limits: Limits,
) -> bool:
    before, after = [], []
    with setting():
        for one, rendered in cases:
            part, prompt = rendered.beginning(len(one.cached)), change(rendered.prompt_ids)
            length = len(prompt) + len(part.completion_ids)
            if not len(prompt) or (model.context_length is not None and length > model.context_length):
                return False
            logps = model.logps(prompt, part.completion_ids, part.scored)
            after.append(np.abs(one.cached.astype(np.float64) - logps))
            before.append(np.abs(one.difference))
    now = np.concatenate(after)
    within = float(now.max()) <= limits.token_max and float(now.mean()) <= limits.token_mean
    # In 16 bits a small difference is within the limits anyway: the fault has to explain most of it.
    return within and float(now.mean()) < 0.3 * float(np.concatenate(before).mean())
