"""Prompt sharing for a policy: the pairs on which it is checked before it is turned on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.models import prompt_sharing_check
from mrpo_pipeline.models.completion_forward import to_device
from mrpo_pipeline.models.input_layouts import Group
from mrpo_pipeline.models.prompt_sharing_check import Trial
from mrpo_pipeline.policy.collate import group_pairs
from mrpo_pipeline.policy.forward import PolicyForward


def share_prompts(
    model: nn.Module,
    forward: PolicyForward,
    examples: Sequence[PreferenceExamples],
    picked: Sequence[int],
    *,
    dtype: str,
    device: torch.device,
) -> str | None:
    """``prompt_sharing_check.share_prompts`` on the first and the longest pairs, with dropout off.

    Args:
        model: the model whose ``forward`` is the given one.
        examples: all data sets that will be computed, the training pairs first. picked: indices of some training pairs.
    """

    def run(groups: Sequence[Group]) -> Tensor:
        return model(**to_device(forward.rows(groups), device))  # type: ignore[no-any-return]

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        trials = [Trial.of(groups, run) for groups in _tried(examples, picked)]
        return prompt_sharing_check.share_prompts(forward, run, trials, dtype=dtype, device=device)
    finally:
        for module, training in modes.items():
            module.training = training


def _tried(examples: Sequence[PreferenceExamples], picked: Sequence[int]) -> list[list[Group]]:
    batches = [examples[0].__getitems__(list(picked)[:4])] if picked else []
    longest = 0
    for pairs in examples:
        if len(pairs) and pairs.lengths.max() > longest:
            longest = int(pairs.lengths.max())
            # A completion of one token does not test the attention between completions.
            shorter = np.minimum(pairs.chosen_lengths, pairs.rejected_lengths)
            batches.append(pairs.__getitems__(sorted({int(pairs.lengths.argmax()), int(shorter.argmax())})))
    return [group_pairs(batch)[0] for batch in batches]
