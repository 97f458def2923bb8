"""The whole plan of a run, from its recipe."""

from __future__ import annotations

import time

import polars as pl

from mrpo_pipeline.dataset.nothing_left import require_pairs, short_context
from mrpo_pipeline.dataset.policy_start import start_notice
from mrpo_pipeline.dataset.prepare import Prepared, policy_renderer, prepare
from mrpo_pipeline.pairs import PairTable
from mrpo_pipeline.plan.completions import Completions, describe_data, readable
from mrpo_pipeline.plan.hardware import choose_machine
from mrpo_pipeline.plan.result import Plan
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

    def prepared_from(frame: pl.DataFrame, what: str) -> Prepared:
        pairs = recipe.pairs
        return prepare(
            PairTable(frame), renderer, recipe.limits,
            what=what, on_bad_row=pairs.on_bad_row, refuse_rendered=pairs.serialized != "text",
        )  # fmt: skip

    prepared = {name: prepared_from(population.sample(name), f"{name} pairs") for name in population.splits}
    require_pairs(prepared)
    completions = Completions.of(population, prepared)
    planner = ReferencePlanner(recipe.cache, completions, machine, recipe.pairs.on_bad_row)
    references = [planner.plan(source, recipe.scoring_of(source.name)) for source in sources]
    training = None
    if "train" in prepared:
        longest = None
        if population.step > 1:
            longest = prepared_from(population.longest("train"), "the longest pairs")
        training = plan_training(recipe, TrainingData(population, prepared["train"], longest, planner.unfit), machine)
    start = start_notice(recipe)
    frames = [part.frame for part in prepared.values()]
    data = describe_data(population, prepared, completions)
    kept = round(sum(split.kept.value for split in data.splits.values())) if population.step > 1 else None
    short = [
        short_context(one.name, one.context_tokens, recipe.limits, frames, planner.too_long[one.name], pairs=kept)
        for one in references
        if one.context_tokens is not None
    ]
    return Plan(
        data,
        references,
        training,
        machine.describe(),
        machine.device,
        round(time.monotonic() - began, 1),
        tuple(
            notice for notice in (start, *(f"policy: {line}." for line in renderer.reading), *planner.notices) if notice
        ),
        machine.describe_cpu(one.dtype for one in [*references, training] if one is not None and one.hours is not None),
        short_contexts=[text for text in short if text],
        pairs_left=sum(readable(frame, planner.unfit).height for frame in frames),
    )
