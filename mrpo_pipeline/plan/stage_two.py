"""Cost of training: tokens, steps, memory, operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.truncate import Prepared
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.architecture import architecture_of, read_model_config, training_flops
from mrpo_pipeline.plan.completions import readable
from mrpo_pipeline.plan.extrapolation import COMPLETION, Estimate
from mrpo_pipeline.plan.hardware import Machine
from mrpo_pipeline.plan.result import TrainingPlan
from mrpo_pipeline.plan.sampling import Population
from mrpo_pipeline.plan.training_memory import training_memory
from mrpo_pipeline.plan.worst_batch import Lengths, PairLengths, examples_from, step_settings
from mrpo_pipeline.policy.argument_checks import groups_by_prompt
from mrpo_pipeline.policy.arguments import fast_paths
from mrpo_pipeline.policy.model import base_dtype
from mrpo_pipeline.policy.sampler import StepSampler
from mrpo_pipeline.recipe import Recipe

# Pairs, at most, that are put into steps to find the heaviest micro-batch where only a sample is known.
_SIMULATED_PAIRS = 20_000


class TrainingData:
    """The training pairs as the policy reads them: those of the sample, and totals over all.

    Where training groups pairs by prompt, what is run through the model counts each completion of a prompt once. (A prompt with
    more pairs than a step has, or a micro-batch holds, is run again for each part.)

    Args:
        prepared: the sampled pairs. longest: the longest of all pairs; None where the sample has all.
        unfit: completions that some reference can't score: their pairs are left out.
        is_grouped: whether training groups such pairs by prompt.

    Attributes:
        known: lengths of all pairs; of a sample, the longest pairs and the sample repeated to the number of all pairs (up to a
            maximum), so that similar lengths meet in a batch as often as in the run.
    """

    def __init__(
        self,
        population: Population,
        prepared: Prepared,
        longest: Prepared | None,
        unfit: set[str],
        is_grouped: Callable[[PreferenceExamples], bool],
    ) -> None:
        frame = readable(prepared.frame, unfit)
        examples = examples_from(frame)
        grouped = frame.height > 0 and is_grouped(examples)
        self._own = self.known = PairLengths.of(examples, grouped=grouped)
        self._everyone = population.pairs("train", frame["prompt"])
        self.pairs = self._everyone.count(np.ones(frame.height, dtype=bool))
        if longest is not None:
            times = max(1, min(round(self.pairs.value), _SIMULATED_PAIRS) // max(1, frame.height))
            longer = PairLengths.of(examples_from(readable(longest.frame, unfit)), grouped=grouped)
            self.known = PairLengths.concat([longer, *[self._own] * times])

    def steps(self, training: Mapping[str, Any], world_size: int) -> int:
        """Optimizer steps of an epoch, as the trainer's sampler counts them."""
        (size, accumulation), own = step_settings(training), self._own
        if own.distinct is None:
            return math.ceil(round(self.pairs.value) / (size * accumulation * world_size))
        sampler = StepSampler(
            own.longest, size=size, accumulation=accumulation, world_size=world_size, distinct=own.distinct
        )
        return math.ceil(len(sampler) * self.pairs.value / len(own))

    def trained_tokens(self) -> Estimate:
        """Tokens of all pairs, the prompt of a pair counted twice."""
        own = self._own
        return self._everyone.total(2 * own.prompts + own.chosen + own.rejected)

    def tokens(self, *, shared: bool) -> Estimate:
        """Tokens run through the model; a prompt counts for each of its completions, or once where it is shared."""
        own, (prompts, chosen, rejected) = self._own, self._runs(shared=shared)
        return self._everyone.total(prompts * own.prompts + chosen * own.chosen + rejected * own.rejected)

    def completion_tokens(self) -> Estimate:
        own, (_, chosen, rejected) = self._own, self._runs(shared=True)
        return self._everyone.total(chosen * own.chosen + rejected * own.rejected, COMPLETION)

    def squares(self, *, shared: bool) -> Estimate:
        """Σ length² of the sequences: twice the number of attended positions."""
        own, (prompts, chosen, rejected) = self._own, self._runs(shared=shared)
        rows = chosen * (own.prompts + own.chosen) ** 2 + rejected * (own.prompts + own.rejected) ** 2
        return self._everyone.total(rows - (chosen + rejected - prompts) * own.prompts**2)

    def _runs(self, *, shared: bool) -> tuple[Lengths, Lengths, Lengths]:
        """(N,) each: how often a pair's prompt and completions run, those that ran for an earlier pair left out."""
        distinct = self._own.distinct
        first = np.ones((len(self._own), 3), dtype=bool) if distinct is None else distinct.firsts()
        prompts, chosen, rejected = first.astype(np.int64).T
        return prompts if shared else chosen + rejected, chosen, rejected


def grouping(recipe: Recipe) -> Callable[[PreferenceExamples], bool]:
    """A function that tells whether the recipe's training groups given pairs by prompt. Raises UserError as training does."""
    training = recipe.training
    fast, drop_last = fast_paths(training), bool(training.get("dataloader_drop_last"))
    return lambda examples: groups_by_prompt(fast, recipe.method, examples, drop_last=drop_last)


def plan_training(recipe: Recipe, data: TrainingData, machine: Machine) -> TrainingPlan:
    """Stage two of the recipe.

    Raises:
        UserError: for an adapter, target modules or settings that are invalid.
    """
    training = recipe.training
    source = recipe.required_policy()
    plan = _steps(source.model, training, data, machine)
    config = read_model_config(source)
    if config is None:
        plan.unknown.append(f"sizes, memory and hours: the configuration of {source.model} is not available")
    elif not len(data.known):
        plan.unknown.append("memory and hours: no pair is left to train on")
    else:
        plan.dtype = base_dtype(source, config, machine.device)
        _size(plan, recipe, config, data, machine)
    return plan


def _steps(model: str, training: dict[str, Any], data: TrainingData, machine: Machine) -> TrainingPlan:
    """Steps as transformers' Trainer counts them."""
    pairs_per_step = math.prod(step_settings(training)) * machine.count
    steps_per_epoch = data.steps(training, machine.count)
    max_steps = int(training.get("max_steps", -1))
    steps = max_steps if max_steps > 0 else math.ceil(steps_per_epoch * float(training.get("num_train_epochs", 3)))
    epochs = steps / steps_per_epoch if steps_per_epoch else 0.0
    tokens = data.trained_tokens()
    return TrainingPlan(
        model, None, data.pairs, epochs, steps_per_epoch, steps, pairs_per_step, tokens, tokens.times(epochs),
        bool(training.get("gradient_checkpointing")),
    )  # fmt: skip


def _size(plan: TrainingPlan, recipe: Recipe, config: Any, data: TrainingData, machine: Machine) -> None:
    """Memory and operations."""
    policy = recipe.required_policy()
    try:
        architecture = architecture_of(config, policy.trust_remote_code)
        memory = training_memory(
            policy, architecture, recipe.training, data.known,
            dtype=str(plan.dtype), device=machine.device, world_size=machine.count,
        )  # fmt: skip
    except UserError as error:
        if "policy." in str(error):  # a setting, which the user can correct
            raise
        plan.unknown.append(f"sizes, memory and hours: {error}")
        return
    plan.parameters, plan.memory = architecture.parameters, memory
    if memory.resident_bytes is None:
        plan.unknown.append(f"peak memory: this architecture can't be traced ({memory.untraced})")
    else:
        plan.fits = memory.resident_bytes <= machine.memory_bytes
    run, squares = data.tokens(shared=memory.shared_prompt), data.squares(shared=memory.shared_prompt)
    flops = training_flops(
        architecture, memory.trainable_parameters, run.value, squares.value, data.completion_tokens().value,
        recomputed=plan.gradient_checkpointing,
    )  # fmt: skip
    plan.flops = Estimate(flops, flops * run.relative_error).times(plan.epochs)
    plan.hours = machine.hours(plan.flops, plan.dtype)
