"""A guess put to the test: are the cached numbers those of the text, or the model, with one known fault in it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from mrpo_pipeline.engines.base import TokenIds
from mrpo_pipeline.rendering import Rendered
from mrpo_pipeline.verify.comparison import Compared
from mrpo_pipeline.verify.oracle import PlainModel
from mrpo_pipeline.verify.tolerances import Limits

TRIED = 3  # completions that each guess is tried on: the worst ones


def confirmed_reasons(
    model: PlainModel, compared: Sequence[Compared], rendered: Sequence[Rendered], limits: Limits
) -> list[str]:
    """The faults with which the model gives what the cache has, on the completions that differ most.

    Args:
        compared: (N,) completions. rendered: (N,) they and their prompts as rendered here.
    """
    differing = [at for at, one in enumerate(compared) if len(one.cached)]
    worst = sorted(differing, key=lambda at: -float(np.abs(compared[at].difference).mean()))[:TRIED]
    if not worst or float(np.abs(compared[worst[0]].difference).max()) <= limits.clearly_off:
        return []
    return [
        f"confirmed: {told} (the {len(worst)} worst completions computed so agree with the cache)"
        for told, change, fault in _faults(model)
        if _explains(model, [(compared[at], rendered[at], change) for at in worst], limits, fault)
    ]


def _faults(
    model: PlainModel,
) -> Iterator[tuple[str, Callable[[TokenIds], TokenIds], Callable[[], AbstractContextManager[None]]]]:
    """(in words, what it does to the prompt's ids, what it does to the model)."""
    yield "the prompt's first token (BOS, say) stood there twice", _first_twice, nullcontext
    yield "the prompt's first token (BOS, say) was missing", _first_missing, nullcontext
    if model.adapted:
        yield "the adapter was left out", _as_it_is, model.without_adapter


def _first_twice(prompt: TokenIds) -> TokenIds:
    return np.concatenate([prompt[:1], prompt])


def _first_missing(prompt: TokenIds) -> TokenIds:
    return prompt[1:]


def _as_it_is(prompt: TokenIds) -> TokenIds:
    return prompt


def _explains(
    model: PlainModel,
    cases: Sequence[tuple[Compared, Rendered, Callable[[TokenIds], TokenIds]]],
    limits: Limits,
    fault: Callable[[], AbstractContextManager[None]],
) -> bool:
    before, after = [], []
    with fault():
        for one, rendered, change in cases:
            part, prompt = rendered.beginning(len(one.cached)), change(rendered.prompt_ids)
            length = len(prompt) + len(part.completion_ids)
            if not len(prompt) or (model.context_length is not None and length > model.context_length):
                return False
            logps = model.logps(prompt, part.completion_ids, part.scored)
            after.append(np.abs(one.cached.astype(np.float64) - logps))
            before.append(np.abs(one.difference))
    now = np.concatenate(after)
    within = float(now.max()) <= limits.token_max and float(now.mean()) <= limits.token_mean
    # In 16 bits a small fault passes the limits itself: only one that explains most of the difference counts.
    return within and float(now.mean()) < 0.3 * float(np.concatenate(before).mean())
