"""What training will take: tokens, steps, memory, operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.dataset.prepare import Prepared
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.architecture import architecture_of, read_model_config, weight_bytes
from mrpo_pipeline.plan.completions import readable
from mrpo_pipeline.plan.extrapolation import COMPLETION, Estimate
from mrpo_pipeline.plan.hardware import Machine
from mrpo_pipeline.plan.result import TrainingMemory, TrainingPlan
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
    """The training pairs as the policy reads them: those of the sample, and how they count for all.

    Args:
        prepared: the sampled pairs. longest: the longest of all pairs; None where all are in the sample.
        unfit: completions that some reference can't read: their pairs are left out.

    Attributes:
        known: lengths of all pairs, or of the longest with the sample over and over: as many as there are, up to some, so that like
            pairs come together as often as they will.
    """

    def __init__(self, population: Population, prepared: Prepared, longest: Prepared | None, unfit: set[str]) -> None:
        frame = readable(prepared.frame, unfit)
        self._own = self.known = PairLengths.of(frame)
        self._everyone = population.pairs("train", frame["prompt"])
        self.pairs = self._everyone.count(np.ones(frame.height, dtype=bool))
        if longest is not None:
            times = max(1, min(round(self.pairs.value), _DRAWN) // max(1, frame.height))
            self.known = PairLengths.of(pl.concat([readable(longest.frame, unfit), *[frame] * times]))

    def tokens(self, *, shared: bool) -> Estimate:
        """Of prompts and completions; a prompt counts for both of its completions, or once where it is shared."""
        return self._everyone.total((1 if shared else 2) * self._own.prompts + self._own.chosen + self._own.rejected)

    def completion_tokens(self) -> Estimate:
        return self._everyone.total(self._own.chosen + self._own.rejected, COMPLETION)

    def squares(self, *, shared: bool) -> Estimate:
        """Σ of what every token looks back on, doubled: length² of each sequence."""
        own = self._own
        both = (own.prompts + own.chosen) ** 2 + (own.prompts + own.rejected) ** 2
        return self._everyone.total(both - own.prompts**2 if shared else both)


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
    policy, training, dtype = recipe.required_policy(), recipe.training_arguments(), str(plan.dtype)
    try:
        figures = policy_figures(
            policy, config, policy.lora, training, data.known,
            dtype=dtype, on_cpu=machine.device == "cpu", world_size=machine.count,
        )  # fmt: skip
        architecture = architecture_of(config, policy.trust_remote_code)
    except UserError as error:
        if "policy." in str(error):  # a setting, which can be mended
            raise
        plan.unknown.append(f"sizes, memory and hours: {error}")
        return
    plan.parameters, plan.trainable_parameters = architecture.parameters, figures.trainable
    plan.batch_pairs = len(figures.pairs)
    plan.batch_longest_tokens = int(figures.pairs.longest.max())
    weights = weight_bytes(policy, architecture, dtype)
    plan.memory = _memory(plan, weights, figures, training, machine, architecture.vocabulary)
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
    plan: TrainingPlan,
    weights: int,
    figures: PolicyFigures,
    training: dict[str, Any],
    machine: Machine,
    vocabulary: int,
) -> TrainingMemory:
    adapter, states = lora_bytes(figures.trainable), optimizer_bytes(training, figures.trainable)
    process, started = PROCESS_BYTES[machine.device], process_bytes(vocabulary, machine.device)
    peak = resident = fits = None
    if figures.activation_bytes is not None:
        peak = weights + 2 * adapter + states + figures.activation_bytes
        alive = peak + process
        resident = started + resident_bytes(alive, device=machine.device, checkpointing=plan.gradient_checkpointing)
        fits = resident <= machine.memory_bytes
    return TrainingMemory(
        weights, adapter, adapter, states, figures.activation_bytes, peak, process + started, resident, fits
    )
