"""Check before the first step that a policy which starts as the anchor gives the cached anchor's log-probs.

A wrong template, revision or tokenizer would otherwise train without an error towards a target that is off by nats.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.policy.sampler import PairLoader
from mrpo_pipeline.policy.trainer import PreferenceTrainer

log = logging.getLogger("mrpo")

# Nats per token. In float32 two correct computations differ by about 1e-6, so the worst completion of the batch decides.
# In half precision a logit of 16 to 32 is resolved to 1/64 (float16, 11 significant bits) or 1/8 (bfloat16, 8 bits), and
# single tokens (so short completions) are off by about as much. Over the tokens of a batch this averages to a tenth of it
# or less, while a wrong template moves the whole batch by tenths of nats. So the average over the batch decides there.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


def check_start(trainer: PreferenceTrainer, anchor: AnchorStart, policy_dtype: str) -> float:
    """Compare the policy's sums on the first micro-batch (of every process) with the cached anchor's.

    Args:
        anchor, policy_dtype: the dtype of each computation; the coarser one sets the tolerance.

    Returns:
        the difference, nats per token.

    Raises:
        UserError: if they disagree, with the cause or the likely ones.
    """
    examples = trainer.train_dataset
    # Sums are reduced over all processes, so all decide alike.
    first = next(iter(trainer.train_sampler()))[0]
    chosen, rejected = trainer.policy_sums(examples, PairLoader(examples, [first]))
    policy = torch.cat([chosen, rejected]).cpu().double().numpy()
    mine = torch.zeros(len(examples), device=chosen.device)
    mine[[at for at in first if at >= 0]] = 1  # a negative index is a filler pair of weight 0
    if trainer.args.world_size > 1:
        mine = trainer.accelerator.reduce(mine, "sum")
    picked = np.flatnonzero(mine.cpu().numpy())
    return compare(examples, picked, policy, anchor, policy_dtype)


class StartCheck(TrainerCallback):  # type: ignore[misc]
    """Calls :func:`check_start` when the model is ready to train (for example sharded over processes).

    Attributes:
        difference: nats per token; None before the comparison.
    """

    def __init__(self, trainer: PreferenceTrainer, anchor: AnchorStart, policy_dtype: str) -> None:
        self.trainer = trainer
        self.given = (anchor, policy_dtype)
        self.difference: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.compare()

    def compare(self) -> None:
        """Compare now. Raises as :func:`check_start`."""
        self.difference = check_start(self.trainer, *self.given)
        log.info("The policy's start agrees with the cached anchor (%.2g nats per token).", self.difference)


def compare_start(
    examples: PreferenceExamples,
    chosen: np.typing.NDArray[np.float64],
    rejected: np.typing.NDArray[np.float64],
    anchor: AnchorStart,
    policy_dtype: str,
) -> None:
    """:func:`check_start` for a start that was evaluated on all pairs.

    Args:
        chosen, rejected: (N,) the start's sums, nats.
    """
    compare(examples, np.arange(len(examples)), np.concatenate([chosen, rejected]), anchor, policy_dtype)


def compare(
    examples: PreferenceExamples,
    picked: np.typing.NDArray[np.int64],
    policy: np.typing.NDArray[np.float64],
    start: AnchorStart,
    policy_dtype: str,
) -> float:
    """:func:`check_start` on given sums.

    Args:
        picked: (B,) indices of pairs. policy: (2N,) the policy's sums, chosen then rejected, set at those pairs.
    """
    rows = np.concatenate([picked, picked + len(examples)])
    anchor = np.concatenate(examples.anchor)[rows]
    tokens = np.concatenate([examples.chosen_counts, examples.rejected_counts])[rows]
    gaps = np.abs(policy[rows] - anchor)
    dtype = max(policy_dtype, start.dtype or policy_dtype, key=lambda name: TOLERANCE.get(name, 0.0))
    tolerance = TOLERANCE.get(dtype, max(TOLERANCE.values()))
    exact = dtype == "float32"
    if not len(gaps):
        raise RunError("No pair was compared with the cached anchor: expected those of the first step. Report this.")
    difference = float((gaps / tokens).max() if exact else gaps.sum() / tokens.sum())
    if difference <= tolerance:
        return difference
    worst = int((gaps / tokens).argmax())
    side, pair = ("chosen", worst) if worst < len(picked) else ("rejected", worst - len(picked))
    cause = f"The cause: {'; '.join(start.differences)}." if start.differences else _LIKELY
    raise UserError(
        f"The policy's start does not agree with the cached anchor: on pair {examples.pair_ids[picked[pair]]}, {side} side, "
        f"{tokens[worst]} tokens, the policy gives {policy[rows][worst]:.3f} nats and the cache {anchor[worst]:.3f}. That is "
        f"{difference:.2g} nats per token ({'the worst completion' if exact else 'the average'} of {len(picked):,} pairs), expected "
        f"{tolerance:g} at most in {dtype}. {cause} Set them alike and score the anchor again. If the policy is meant to start "
        "elsewhere, set policy.check_anchor: false (--no-check-anchor)."
    )


_LIKELY = (
    "Likely faults: another chat template (policy.template and the anchor's), another revision or adapter of the model, another "
    "tokenizer, another dtype or quantization than the anchor was scored in."
)
