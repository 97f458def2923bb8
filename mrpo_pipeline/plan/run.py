"""The plan of a run, from its recipe."""

from __future__ import annotations

import polars as pl

from mrpo_pipeline.dataset.anchor_mismatch import start_notice
from mrpo_pipeline.dataset.nothing_left import require_pairs, short_context
from mrpo_pipeline.dataset.truncate import Prepared, prepare
from mrpo_pipeline.pairs import PairTable
from mrpo_pipeline.plan.completions import Completions, describe_data, readable
from mrpo_pipeline.plan.hardware import choose_machine
from mrpo_pipeline.plan.result import Plan
from mrpo_pipeline.plan.sampling import read_population
from mrpo_pipeline.plan.stage_one import ReferencePlanner
from mrpo_pipeline.plan.stage_two import TrainingData, grouping, plan_training
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.rendering import Renderer


def plan_run(
    recipe: Recipe, *, gpu: str | None = None, gpus: int = 1, efficiency: float | None = None, exact: bool = False
) -> Plan:
    """Estimate the cost of a run. Reads no weights and writes nothing.

    Downloads tokenizers and configurations from the hub where they are not in the local cache, nothing else.

    Args:
        recipe: with pairs, policy, references and cache.
        gpu: a name of ``gpus.GPUS``, or ``none`` for no hours; by default this machine's GPU, else its CPU.
        gpus: number of GPUs that share the work.
        efficiency: share of the GPU's peak, or of the CPU's measured speed, that is reached; None for the default.
        exact: tokenize every pair.

    Raises:
        UserError: for wrong pairs, settings or caches, and where the policy's tokenizer is not available.
    """
    machine = choose_machine(gpu, gpus, efficiency)
    recipe.required_policy()
    sources = recipe.sources() if recipe.method.has_reference else []
    population = read_population(recipe.pairs, exact=exact)
    renderer = Renderer.of(recipe.required_policy())

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
        longest = prepared_from(population.longest("train"), "the longest pairs") if population.step > 1 else None
        data = TrainingData(population, prepared["train"], longest, planner.unfit, grouping(recipe))
        training = plan_training(recipe, data, machine)
    frames = [part.frame for part in prepared.values()]
    described = describe_data(population, prepared, completions)
    kept = round(sum(split.kept.value for split in described.splits.values())) if population.step > 1 else None
    short = [
        short_context(one.name, one.context_tokens, recipe.limits, frames, planner.too_long[one.name], pairs=kept)
        for one in references
        if one.context_tokens is not None
    ]
    start = start_notice(recipe) if sources else "Nothing is to be scored: method.reference is none."
    notices = start, *(f"policy: {line}." for line in renderer.reading), *planner.notices
    timed = [one.dtype for one in [*references, training] if one is not None and one.hours is not None]
    return Plan(
        described,
        references,
        training,
        gpu=machine.describe_gpu(),
        cpu=machine.describe_cpu(timed),
        device=machine.device,
        notices=tuple(filter(None, notices)),
        short_contexts=[text for text in short if text],
        pairs_left=sum(readable(frame, planner.unfit).height for frame in frames),
    )
