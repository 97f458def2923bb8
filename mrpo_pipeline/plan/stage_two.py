"""What training will take: tokens, steps, memory, operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.dataset.prepare import Prepared
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.architecture import describe, empty_model, read_model_config, weight_bytes
from mrpo_pipeline.plan.completions import kept_rows, pair_expansion
from mrpo_pipeline.plan.estimate import Estimate
from mrpo_pipeline.plan.hardware import Machine
from mrpo_pipeline.plan.report import TrainingMemory, TrainingPlan
from mrpo_pipeline.plan.sampling import Population
from mrpo_pipeline.plan.scoring_memory import process_bytes
from mrpo_pipeline.plan.training_memory import (
    PROCESS_BYTES,
    PolicyFigures,
    lora_bytes,
    optimizer_bytes,
    policy_figures,
    resident_bytes,
    training_flops,
)
from mrpo_pipeline.plan.worst_batch import PairLengths
from mrpo_pipeline.policy.model import base_dtype
from mrpo_pipeline.recipe import Recipe

# Pairs that are put into steps, to see which micro-batch is the heaviest, where only a sample is known.
_DRAWN = 20_000


class TrainingData:
    """The training pairs as the policy reads them: those of the sample, and how they stand for all.

    Args:
        prepared: the sampled pairs. longest: the longest ones of all, or the same.
        unfit: completions that do not fit some reference's context: their pairs are left out.
    """

    def __init__(self, population: Population, prepared: Prepared, longest: Prepared, unfit: set[str]) -> None:
        self._expansion = pair_expansion(population, "train")
        rows = kept_rows(population.splits["train"].sample, prepared)
        lengths, fits = _lengths(prepared.frame, unfit)
        self._inside = rows >= 0
        self._inside[self._inside] = fits[rows[self._inside]]
        self._lengths = lengths.pick(rows[self._inside])
        self.pairs = self._expansion.count(self._inside)
        others, others_fit = _lengths(longest.frame, unfit)
        known = [self._lengths] if longest is prepared else [others.pick(np.flatnonzero(others_fit)), self._lengths]
        # As many as there are, up to some, so that like pairs come together as often as they will.
        times = max(1, min(round(self.pairs.value), _DRAWN) // max(1, len(self._lengths))) if len(known) > 1 else 1
        known += [self._lengths] * (times - 1)
        self.known = PairLengths(
            np.concatenate([one.prompts for one in known]),
            np.concatenate([one.chosen for one in known]),
            np.concatenate([one.rejected for one in known]),
        )
        """Of all pairs, or of the sample over and over with the longest of all."""

    def tokens(self, *, shared: bool) -> Estimate:
        """Of prompts and completions; a prompt counts for both of its completions, or once where it is shared."""
        own = self._lengths
        return self._total((1 if shared else 2) * own.prompts + own.chosen + own.rejected)

    def completion_tokens(self) -> Estimate:
        return self._total(self._lengths.chosen + self._lengths.rejected)

    def squares(self, *, shared: bool) -> Estimate:
        """Σ of what every token looks back on, doubled: length² of each sequence."""
        own = self._lengths
        both = (own.prompts + own.chosen) ** 2 + (own.prompts + own.rejected) ** 2
        return self._total(both - own.prompts**2 if shared else both)

    def _total(self, values: npt.NDArray[np.int64]) -> Estimate:
        spread = np.zeros(len(self._inside))
        spread[self._inside] = values
        return self._expansion.total(spread)


def plan_training(recipe: Recipe, data: TrainingData, machine: Machine) -> TrainingPlan:
    """Stage two of the recipe.

    Raises:
        UserError: for an adapter, target modules or settings that can't be.
    """
    training = recipe.training_arguments()
    source = recipe.required_policy()
    plan = _steps(source.model, training, data, machine)
    config = read_model_config(source)
    if config is None:
        plan.unknown.append(f"sizes, memory and hours: the configuration of {source.model} can't be had")
    elif not len(data.known):
        plan.unknown.append("memory and hours: no pair is left to train on")
    else:
        plan.dtype = base_dtype(source, config, machine.device)
        _size(plan, recipe, config, data, machine)
    return plan


def _steps(model: str, training: dict[str, Any], data: TrainingData, machine: Machine) -> TrainingPlan:
    """As transformers' Trainer counts them."""
    accumulation = int(training.get("gradient_accumulation_steps", 1))
    pairs_per_step = int(training.get("per_device_train_batch_size", 8)) * accumulation * machine.count
    steps_per_epoch = math.ceil(round(data.pairs.value) / pairs_per_step)
    asked = int(training.get("max_steps", -1))
    steps = asked if asked > 0 else math.ceil(steps_per_epoch * float(training.get("num_train_epochs", 3)))
    epochs = steps / steps_per_epoch if steps_per_epoch else 0.0
    tokens = data.tokens(shared=False)
    return TrainingPlan(
        model, None, data.pairs, epochs, steps_per_epoch, steps, pairs_per_step, tokens, tokens.times(epochs),
        bool(training.get("gradient_checkpointing")),
    )  # fmt: skip


def _size(plan: TrainingPlan, recipe: Recipe, config: Any, data: TrainingData, machine: Machine) -> None:
    """Memory and operations."""
    import torch

    policy, training, dtype = recipe.required_policy(), recipe.training_arguments(), str(plan.dtype)
    try:
        figures = policy_figures(
            policy, config, policy.lora, training, data.known,
            dtype=dtype, on_cpu=machine.device == "cpu", world_size=machine.count,
        )  # fmt: skip
        architecture = describe(empty_model(config, dtype=torch.float32, trust_remote_code=policy.trust_remote_code))
    except UserError as error:
        if "policy." in str(error):  # a setting, which can be mended
            raise
        plan.unknown.append(f"sizes, memory and hours: {error}")
        return
    plan.parameters, plan.trainable_parameters = architecture.parameters, figures.trainable
    plan.batch_pairs = len(figures.pairs)
    plan.batch_longest_tokens = _longest(figures.pairs)
    weights = weight_bytes(policy, architecture, dtype)
    plan.memory = _memory(
        weights, figures, training, machine, architecture.vocabulary, checkpointing=plan.gradient_checkpointing
    )
    if figures.activation_bytes is None:
        plan.unknown.append(f"peak memory: this architecture could not be run through ({figures.reason})")
    run, squares = data.tokens(shared=figures.shared), data.squares(shared=figures.shared)
    flops = training_flops(
        architecture, figures.trainable, run.value, squares.value, data.completion_tokens().value,
        recomputed=plan.gradient_checkpointing,
    )  # fmt: skip
    plan.flops = Estimate(flops, flops * run.relative_error).times(plan.epochs)
    plan.hours = machine.hours(plan.flops, plan.dtype)


def _memory(
    weights: int,
    figures: PolicyFigures,
    training: dict[str, Any],
    machine: Machine,
    vocabulary: int,
    *,
    checkpointing: bool,
) -> TrainingMemory:
    adapter = lora_bytes(figures.trainable)
    states = optimizer_bytes(training, figures.trainable)
    process = PROCESS_BYTES[machine.device]
    started = process_bytes(vocabulary, machine.device)
    peak = resident = fits = None
    if figures.activation_bytes is not None:
        peak = weights + 2 * adapter + states + figures.activation_bytes
        resident = started + resident_bytes(peak + process, device=machine.device, checkpointing=checkpointing)
        fits = resident <= machine.memory_bytes
    process += started
    return TrainingMemory(weights, adapter, adapter, states, figures.activation_bytes, peak, process, resident, fits)


def _lengths(frame: pl.DataFrame, unfit: set[str]) -> tuple[PairLengths, npt.NDArray[np.bool_]]:
    """Of prepared pairs; and which of them every reference can read."""
    lengths = [
        frame["prompt_tokens"].cast(pl.Int64).to_numpy(),
        *(frame[f"{side}_ids"].list.len().cast(pl.Int64).to_numpy() for side in ("chosen", "rejected")),
    ]
    if not unfit:
        return PairLengths(*lengths), np.ones(frame.height, dtype=bool)
    away = pl.Series(sorted(unfit), dtype=pl.String).implode()
    hit = frame["chosen_id"].is_in(away) | frame["rejected_id"].is_in(away)
    return PairLengths(*lengths), ~hit.to_numpy()


def _longest(pairs: PairLengths) -> int:
    return int((pairs.prompts + np.maximum(pairs.chosen, pairs.rejected)).max())
