"""The whole plan of a run, from its recipe."""

from __future__ import annotations

import time

import numpy as np
import polars as pl

from mrpo_pipeline.dataset.nothing_left import require_pairs, short_context
from mrpo_pipeline.dataset.policy_start import start_notice
from mrpo_pipeline.dataset.prepare import policy_renderer
from mrpo_pipeline.plan.completions import describe_data, prepare_population, wanted_of
from mrpo_pipeline.plan.hardware import choose_machine
from mrpo_pipeline.plan.report import Plan
from mrpo_pipeline.plan.sampling import read_population
from mrpo_pipeline.plan.stage_one import ReferencePlanner
from mrpo_pipeline.plan.stage_two import TrainingData, plan_training
from mrpo_pipeline.recipe import Recipe


def plan_run(
    recipe: Recipe, *, gpu: str | None = None, gpus: int = 1, efficiency: float | None = None, exact: bool = False
) -> Plan:
    """What a run would score and train, and what that takes. No weights are read, nothing is written.

    Of models on the hub, tokenizer and configuration are fetched where they are not here, and nothing else.

    Args:
        recipe: pairs, policy and limits; references, cache and scoring; training.
        gpu: a name of ``gpus.GPUS``, ``none`` for no hours; this machine's where not given, else its CPU.
        gpus: how many of them share the work.
        efficiency: the share of the GPU's peak, or of the CPU's measured speed, that is reached; None for the usual one.
        exact: tokenize every pair, however many there are.

    Raises:
        UserError: for pairs, settings or caches that are wrong, and where the policy's tokenizer can't be had.
    """
    began = time.monotonic()
    machine = choose_machine(gpu, gpus, efficiency)
    recipe.required_policy()
    sources = recipe.sources()
    population = read_population(recipe.pairs, exact=exact)
    renderer = policy_renderer(recipe)
    prepared, longest = prepare_population(
        population, renderer, recipe.limits, recipe.pairs.on_bad_row, recipe.pairs.serialized != "text"
    )
    require_pairs(prepared)
    wanted = wanted_of(population, prepared)
    planner = ReferencePlanner(recipe.cache, wanted, machine, recipe.pairs.on_bad_row)
    references = [planner.plan(source, recipe.scoring_of(source.name)) for source in sources]
    training = None
    if "train" in prepared:
        data = TrainingData(population, prepared["train"], longest["train"], planner.unfit)
        training = plan_training(recipe, data, machine)
    timed = [one.dtype for one in references if one.hours is not None]
    if training is not None and training.hours is not None:
        timed.append(training.dtype)
    frames = [part.frame for part in prepared.values()]
    described = describe_data(population, prepared, wanted)
    short = [
        short_context(
            one.name, one.context_tokens, recipe.limits, frames, planner.too_long[one.name],
            pairs=None if population.share >= 1 else round(sum(split.kept.value for split in described.splits.values())),
        )
        for one in references
        if one.context_tokens is not None
    ]  # fmt: skip
    return Plan(
        described,
        references,
        training,
        machine.describe(),
        machine.device,
        float(np.round(time.monotonic() - began, 1)),
        tuple(notice for notice in [start_notice(recipe)] if notice)
        + tuple(f"policy: {line}." for line in renderer.reading)
        + tuple(planner.notices),
        machine.describe_cpu(timed),
        short_contexts=[text for text in short if text],
        pairs_left=_pairs_left(frames, planner.unfit),
    )


def _pairs_left(frames: list[pl.DataFrame], unfit: set[str]) -> int:
    """Of the pairs that were tokenized, those that every reference reads."""
    away = pl.Series(sorted(unfit), dtype=pl.String).implode()
    return sum(
        frame.filter(~pl.col("chosen_id").is_in(away) & ~pl.col("rejected_id").is_in(away)).height for frame in frames
    )
