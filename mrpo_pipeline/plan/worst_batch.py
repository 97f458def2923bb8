"""The micro-batch of a run that takes the most memory: the trainer's own sampler, layout and forward pass, asked beforehand.

Everything that has to follow a change of how the policy puts pairs together stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.policy.arguments import DEFAULTS, fast_paths
from mrpo_pipeline.policy.sampler import Measure, StepSampler, token_limit
from mrpo_pipeline.recipe.training import FastPaths

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairLengths:
    """Tokens of N pairs as the policy reads them: of the prompt, and of both completions; each (N,)."""

    prompts: Lengths
    chosen: Lengths
    rejected: Lengths

    @classmethod
    def of(cls, frame: pl.DataFrame) -> PairLengths:
        """Of prepared pairs."""
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return cls(*(frame[name].list.len().cast(pl.Int64).to_numpy() for name in names))

    @property
    def longest(self) -> Lengths:
        """(N,) the prompt with the longer completion."""
        longest: Lengths = self.prompts + np.maximum(self.chosen, self.rejected)
        return longest

    def pick(self, places: npt.NDArray[Any]) -> PairLengths:
        return PairLengths(self.prompts[places], self.chosen[places], self.rejected[places])

    def __len__(self) -> int:
        return len(self.prompts)


def examples_of(lengths: PairLengths) -> PreferenceExamples:
    """Pairs of these lengths, every token the same."""
    count = len(lengths)
    prompts = np.maximum(lengths.prompts, 1)  # sides that begin with different tokens have no prompt of their own
    ids = [[np.ones(n, dtype=np.int32) for n in side] for side in (prompts, lengths.chosen, lengths.rejected)]
    sums = np.full((count, 1), -1.0)
    return PreferenceExamples(
        pair_ids=[str(number) for number in range(count)],
        prompt_ids=ids[0],
        chosen_ids=ids[1],
        rejected_ids=ids[2],
        reference_chosen=sums,
        reference_rejected=sums,
        weights=np.ones((count, 1)),
        anchor_chosen=np.full(count, -1.0),
        anchor_rejected=np.full(count, -1.0),
    )


def heaviest(
    lengths: PairLengths, training: Mapping[str, Any], *, shared: bool, world_size: int, on_cpu: bool
) -> tuple[PairLengths, bool]:
    """The pairs of the micro-batch that runs the most tokens through the model in the first epoch.

    Args:
        lengths: of the training pairs (N >= 1), or of a sample with the longest pairs among it.
        training: the recipe's keys. shared: whether a prompt stands once for both of its completions.

    Returns:
        those pairs, and whether an optimizer step has several micro-batches.
    """
    fast = fast_paths(training)
    size, limit = int(training.get("per_device_train_batch_size", 8)), fast.micro_batch_tokens
    together = lengths.prompts + lengths.chosen + lengths.rejected
    measure = Measure(together if shared else lengths.longest, padded=not shared)
    sampler = StepSampler(
        lengths.longest,
        size=size,
        accumulation=int(training.get("gradient_accumulation_steps", 1)),
        world_size=world_size,
        seed=int(training.get("data_seed") or training.get("seed", 0)),
        order=training.get("train_sampling_strategy", DEFAULTS["train_sampling_strategy"]),
        measure=lambda: measure,
        tokens=None if limit == "off" else lambda found: token_limit(found, size, limit, on_cpu=on_cpu),
    )
    steps = list(sampler)
    batches = (np.array([i if i >= 0 else ~i for i in batch]) for step in steps for batch in step)
    return lengths.pick(max(batches, key=measure)), any(len(step) > 1 for step in steps)


def run_through(policy: Any, head: Any, pairs: PairLengths, training: Mapping[str, Any]) -> None:
    """One micro-batch forward and backward through a policy whose tensors are fake.

    Args:
        policy: a peft model. head: of its base.
    """
    from mrpo_pipeline.losses.settings import LossSettings
    from mrpo_pipeline.policy.forward import PolicyForward
    from mrpo_pipeline.policy.fused_lora import fuse_adapters
    from mrpo_pipeline.policy.metrics import pair_losses

    fast = fast_paths(training)
    forward = PolicyForward(head, pair_attention(head, fast), chunked_head=fast.chunked_head)
    policy.forward = forward
    if fast.fused_lora:
        fuse_adapters(policy)
    policy.train()
    batch = examples_of(pairs).__getitems__(list(range(len(pairs))))
    try:
        chosen, rejected = policy(**forward.inputs(batch)).chunk(2)
        # Every loss is a handful of numbers for each pair.
        result = pair_losses(chosen, rejected, batch["lengths"], batch, LossSettings())
        result.losses.sum().backward()  # type: ignore[no-untyped-call]
    finally:
        forward.release()


def pair_attention(head: Any, fast: FastPaths) -> Any | None:
    """What lets a prompt stand once for both of its completions; None where it is not to, or the model can't have it."""
    from mrpo_pipeline.policy.shared_prompt_attention import NotShareableError, PairAttention

    if not fast.share_prompt or head.is_plain:
        return None
    try:
        return PairAttention(head.model)
    except NotShareableError:
        return None
