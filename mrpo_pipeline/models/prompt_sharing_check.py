"""Check on real completions that running a prompt once for all of them gives the log-probs of separate rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mrpo_pipeline.models.completion_forward import CompletionForward
from mrpo_pipeline.models.input_layouts import Group
from mrpo_pipeline.models.probe_token_ids import ordinary_ids, special_ids
from mrpo_pipeline.models.shared_prompt_attention import NotShareableError, SharedPromptAttention
from mrpo_pipeline.terminal import one_line

# Nats per token. In float32 the worst completion decides; in half precision, where rounding moves single tokens by as much
# as a wrong mask would, the average decides. A completion that sees another one is off by tenths of nats.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


# Prompts so short that anything carried over from earlier tokens of the row changes every log-prob.
_PROMPTS, _COMPLETIONS, _LENGTH = 8, 3, 4

Run = Callable[[Sequence[Group]], Tensor]


class Trial(NamedTuple):
    """Completions that are computed in both layouts."""

    sums: Callable[[], Tensor]
    """Computes their sums, (C,) nats, in the current layout of ``forward``."""
    counts: Sequence[int]
    """(C,) their numbers of scored tokens."""

    @classmethod
    def of(cls, groups: Sequence[Group], run: Run) -> Trial:
        return cls(lambda: run(groups), [count for group in groups for count in group.counts])


@torch.no_grad()
def share_prompts(
    forward: CompletionForward, run: Run, trials: Sequence[Trial], *, dtype: str, device: torch.device
) -> str | None:
    """Let ``forward`` share prompts if the model then gives the log-probs of plain rows; otherwise, it does not share them.

    Short random texts come first: a model that carries state over from earlier tokens of the row (a recurrent state, a
    convolution) forgets it along a long prompt. A sliding window or chunks show only in longer rows, so the longest completion
    must be among the trials. The model must be in eval mode.

    Args:
        run: computes the sums of the groups' completions, (C,) nats, in the current layout of ``forward``.
        trials: further completions to compare.
        dtype: of the model's computation.

    Returns:
        None if prompts are shared, else the reason in one line.
    """
    reason = _share(forward, run, trials, dtype, device)
    name = type(forward.head.model).__name__
    return reason and f"{name} runs every prompt once for each of its completions, which is slower: {reason}."


def _share(
    forward: CompletionForward, run: Run, trials: Sequence[Trial], dtype: str, device: torch.device
) -> str | None:
    forward.attention = None
    if forward.head.is_plain:
        return "its output head is computed the plain way"
    try:
        attention = SharedPromptAttention(forward.head.model)
    except NotShareableError as error:
        return str(error)
    reason = None
    # The variable-length kernel is for half precision on a GPU; it may be missing, or wrong for this model.
    for attention.variable_length in (True, False) if device.type == "cuda" else (False,):
        every = [Trial.of(_short_texts(forward.head.model), run), *trials]
        reason = next((found for trial in every if (found := _try(forward, attention, trial, dtype))), None)
        if reason is None:
            forward.attention = attention
            return None
    return reason


def _short_texts(model: Any) -> list[Group]:
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    special = list(special_ids(model.config.to_dict()))
    drawn = ordinary_ids(vocabulary, special, _PROMPTS * (_COMPLETIONS + 1) * _LENGTH).astype(np.int32)
    texts = drawn.reshape(_PROMPTS, _COMPLETIONS + 1, _LENGTH)
    return [Group(first[: 1 + at % _LENGTH], others, [None] * len(others)) for at, (first, *others) in enumerate(texts)]


def _try(forward: CompletionForward, attention: SharedPromptAttention, trial: Trial, dtype: str) -> str | None:
    expected = trial.sums()
    forward.attention = attention
    try:
        found = trial.sums()
    except torch.OutOfMemoryError:
        raise
    except NotShareableError as error:
        return str(error)
    except Exception as error:
        return f"trying it failed with {type(error).__name__}: {one_line(error, 200)}"
    finally:
        forward.release()
        forward.attention = None
    gap, count = (found - expected).abs().cpu().double(), torch.tensor(trial.counts, dtype=torch.float64)
    tolerance = TOLERANCE.get(dtype, max(TOLERANCE.values()))
    difference = float((gap / count).max() if dtype == "float32" else gap.sum() / count.sum())
    # NaN fails as well.
    return None if difference <= tolerance else f"log-probs are then off by {difference:.2g} nats per token"
