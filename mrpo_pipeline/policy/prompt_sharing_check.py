"""Whether a prompt can stand once for both of its completions: tried on real pairs, and believed only where it agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.policy.collate import shared_row, two_rows
from mrpo_pipeline.policy.forward import PolicyForward, to_device
from mrpo_pipeline.policy.shared_prompt_attention import NotShareableError, PairAttention
from mrpo_pipeline.terminal import one_line

# Nats per token. In float32 the worst completion is looked at; in half precision, where single tokens are off by as much as
# a wrong mask would make them, the average. A completion that sees the other one is off by tenths of nats.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


def share_prompts(
    model: nn.Module,
    forward: PolicyForward,
    examples: Sequence[PreferenceExamples],
    picked: Sequence[int],
    *,
    dtype: str,
    device: torch.device,
) -> str | None:
    """Let ``forward`` share prompts if the model then gives the log-probs that it gives in two rows; else leave it.

    A sliding window or chunks show only in rows that are longer, so the longest pair is tried as well. Dropout is off
    meanwhile.

    Args:
        model: what is called, its ``forward`` being the one given.
        examples: all pairs that will be computed, the training pairs first. picked: some of those, the first batch say.
        dtype: what the model computes in.

    Returns:
        a notice of one line why not; None where prompts are shared.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        reason = _share(model, forward, examples, picked, dtype=dtype, device=device)
    finally:
        for module, training in modes.items():
            module.training = training
    name = type(forward.head.model).__name__
    return reason and f"{name} runs every prompt twice, once for each completion, which is slower: {reason}."


def _share(
    model: nn.Module,
    forward: PolicyForward,
    examples: Sequence[PreferenceExamples],
    picked: Sequence[int],
    *,
    dtype: str,
    device: torch.device,
) -> str | None:
    if forward.head.is_plain:
        return "its output head is computed the plain way"
    try:
        attention = PairAttention(forward.head.model)
    except NotShareableError as error:
        return str(error)
    reason = None
    batches = _batches(examples, picked)
    # The one kernel is for half precision on a GPU; it may be missing, or be wrong for this model.
    for attention.variable_length in (True, False) if device.type == "cuda" else (False,):
        reason = _try(model, forward, attention, batches, dtype=dtype, device=device)
        if reason is None:
            forward.attention = attention
            return None
    return reason


def _batches(examples: Sequence[PreferenceExamples], picked: Sequence[int]) -> list[dict[str, Any]]:
    batches = [examples[0].__getitems__(list(picked)[:4])] if picked else []
    longest = 0
    for pairs in examples:
        if len(pairs) and pairs.lengths.max() > longest:
            longest = int(pairs.lengths.max())
            # One completion of a single token shares its row with the prompt, whatever attention does.
            shorter = np.minimum(pairs.chosen_lengths, pairs.rejected_lengths)
            batches.append(pairs.__getitems__(sorted({int(pairs.lengths.argmax()), int(shorter.argmax())})))
    return batches


@torch.no_grad()
def _try(
    model: nn.Module,
    forward: PolicyForward,
    attention: PairAttention,
    batches: Sequence[dict[str, Any]],
    *,
    dtype: str,
    device: torch.device,
) -> str | None:
    gaps, tokens = [], []
    for batch in batches:
        expected = model(**to_device(two_rows(batch), device))
        forward.attention = attention
        try:
            found = model(**to_device(shared_row(batch), device))
        except NotShareableError as error:
            return str(error)
        except Exception as error:
            return f"trying it failed with {type(error).__name__}: {one_line(error, 200)}"
        finally:
            forward.release()
            forward.attention = None
        gaps.append((found - expected).abs().cpu().double())
        tokens.append(batch["lengths"].double())
    gap, count = torch.cat(gaps), torch.cat(tokens)
    tolerance = TOLERANCE.get(dtype, max(TOLERANCE.values()))
    difference = float((gap / count).max() if dtype == "float32" else gap.sum() / count.sum())
    # Also where it is not a number.
    return None if difference <= tolerance else f"log-probs are then off by {difference:.2g} nats per token"
