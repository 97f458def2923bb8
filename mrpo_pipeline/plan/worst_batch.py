"""The micro-batch of a run that needs the most memory, from the trainer's own sampler, collator and forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.dataset.completion_numbering import Distinct
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.pair_targets import id_rows, mask_rows
from mrpo_pipeline.policy.arguments import DEFAULTS, fast_paths
from mrpo_pipeline.policy.micro_batching import Measure, token_limit
from mrpo_pipeline.policy.sampler import StepDataset, StepSampler
from mrpo_pipeline.recipe.training import FastPaths

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairLengths:
    """Policy tokens of N pairs, (N,) each: of the prompt and of both completions.

    Attributes:
        distinct: which prompts and completions are equal, where training groups pairs by prompt; None where it does not.
    """

    prompts: Lengths
    chosen: Lengths
    rejected: Lengths
    distinct: Distinct | None = None

    @classmethod
    def of(cls, examples: PreferenceExamples, *, grouped: bool) -> PairLengths:
        lengths = (examples.prompt_lengths, examples.chosen_lengths, examples.rejected_lengths)
        return cls(*lengths, Distinct.of(examples) if grouped else None)

    @classmethod
    def concat(cls, parts: Sequence[PairLengths]) -> PairLengths:
        """The parts' pairs one after another, no prompt of a part equal to one of another part."""
        prompts, chosen, rejected = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("prompts", "chosen", "rejected")
        )
        distinct = [part.distinct for part in parts if part.distinct is not None]
        return cls(prompts, chosen, rejected, Distinct.concat(distinct) if distinct else None)

    @property
    def longest(self) -> Lengths:
        """(N,) tokens of the prompt and the longer completion."""
        longest: Lengths = self.prompts + np.maximum(self.chosen, self.rejected)
        return longest

    def pick(self, places: npt.NDArray[Any]) -> PairLengths:
        distinct = None if self.distinct is None else self.distinct.pick(places)
        return PairLengths(self.prompts[places], self.chosen[places], self.rejected[places], distinct)

    def __len__(self) -> int:
        return len(self.prompts)


def examples_of(lengths: PairLengths) -> PreferenceExamples:
    """Dummy pairs of these lengths."""
    count = len(lengths)
    prompts = np.maximum(lengths.prompts, 1)  # the prompt is empty where the sides begin with different tokens
    ids = [[np.ones(n, dtype=np.int32) for n in side] for side in (prompts, lengths.chosen, lengths.rejected)]
    return _without_references(count, prompt_ids=ids[0], chosen_ids=ids[1], rejected_ids=ids[2])


def examples_from(frame: pl.DataFrame) -> PreferenceExamples:
    """Prepared pairs with dummy sums of references."""
    ids = {name: id_rows(frame[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    masks = {name: mask_rows(frame[name]) for name in ("chosen_scored", "rejected_scored")}
    return _without_references(frame.height, **ids, **masks)


def _without_references(count: int, **rows: Any) -> PreferenceExamples:
    sums = np.full((count, 1), -1.0)
    return PreferenceExamples(
        pair_ids=[str(number) for number in range(count)],
        **rows,
        reference_chosen=sums,
        reference_rejected=sums,
        weights=np.ones((count, 1)),
        anchor_chosen=sums[:, 0],
        anchor_rejected=sums[:, 0],
    )


def heaviest(
    lengths: PairLengths, training: Mapping[str, Any], *, shared: bool, world_size: int, on_cpu: bool
) -> tuple[PairLengths, bool]:
    """The first epoch's micro-batch with the most tokens.

    Args:
        lengths: of the training pairs (N >= 1), or of a sample that includes the longest pairs.
        training: the recipe's keys. shared: whether both completions share one copy of the prompt.

    Returns:
        its pairs, and whether an optimizer step has several micro-batches.
    """
    fast = fast_paths(training)
    (size, accumulation), limit = step_settings(training), fast.micro_batch_tokens
    together = lengths.prompts + lengths.chosen + lengths.rejected
    measure = Measure(together if shared else lengths.longest, not shared, lengths.distinct)
    sampler = StepSampler(
        lengths.longest,
        size=size,
        accumulation=accumulation,
        world_size=world_size,
        seed=int(training.get("data_seed") or training.get("seed", 0)),
        order=training.get("train_sampling_strategy", DEFAULTS["train_sampling_strategy"]),
        measure=lambda: measure,
        tokens=None if limit == "off" else lambda found: token_limit(found, size, limit, on_cpu=on_cpu),
        distinct=lengths.distinct,
    )
    steps = list(sampler)
    batches = (np.array([i if i >= 0 else ~i for i in batch]) for step in steps for batch in step)
    return lengths.pick(max(batches, key=measure)), any(len(step) > 1 for step in steps)


def step_settings(training: Mapping[str, Any]) -> tuple[int, int]:
    """``size`` and ``accumulation`` of the sampler."""
    return int(training.get("per_device_train_batch_size", 8)), int(training.get("gradient_accumulation_steps", 1))


def run_through(policy: Any, head: Any, pairs: PairLengths, training: Mapping[str, Any]) -> None:
    """One micro-batch forward and backward.

    Args:
        policy: a peft model. head: of its base model.
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
    (batch,) = StepDataset(examples_of(pairs), pairs.distinct).__getitems__([range(len(pairs))])
    try:
        chosen, rejected = policy(**forward.inputs(batch)).chunk(2)
        # The choice of loss hardly changes the memory: each keeps a few numbers per pair.
        result = pair_losses(chosen, rejected, batch["lengths"], batch, LossSettings())
        result.losses.sum().backward()  # type: ignore[no-untyped-call]
    finally:
        forward.release()


def pair_attention(head: Any, fast: FastPaths) -> Any | None:
    """The attention that shares a prompt between its completions; None where it is off or unsupported."""
    from mrpo_pipeline.models.shared_prompt_attention import NotShareableError, SharedPromptAttention

    if not fast.share_prompt or head.is_plain:
        return None
    try:
        return SharedPromptAttention(head.model)
    except NotShareableError:
        return None
