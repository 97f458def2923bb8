"""Number of parallel runs on this machine, and the threads or GPU of each."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Recipe

log = logging.getLogger("mrpo")

# Share of the free memory that runs may use; bytes of a process after its imports.
_SHARE_OF_MEMORY = 0.8
_IMPORTS_BYTES = 600 << 20
# Estimated memory as a multiple of the weights, for a policy that can't be traced.
_TIMES_WEIGHTS = 4


@dataclass(frozen=True)
class Places:
    """``count`` parallel processes, each with ``threads`` threads or a GPU."""

    count: int
    threads: int | None = None
    gpus: tuple[str, ...] = ()

    def environment(self, place: int) -> dict[str, str]:
        """Environment variables of a process, in addition to the caller's."""
        if self.gpus:
            return {"CUDA_VISIBLE_DEVICES": self.gpus[place]}
        return {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)} if self.threads else {}

    def describe(self) -> str:
        if self.count == 1:
            return "one run at a time"
        each = "a GPU each" if self.gpus else f"{self.threads} thread{'s' * (self.threads != 1)} each"
        return f"{self.count} runs at a time, {each}"


def places_for(recipe: Recipe, examples: PreferenceExamples, runs: int) -> Places:
    """One process per GPU; without GPUs as many as fit the cores and the free memory, with the cores divided among them.

    Args:
        recipe: with the ``method`` and ``training`` of a run. examples: the training pairs of a run.
        runs: number of runs.

    Raises:
        UserError: if the recipe requests more processes than there are GPUs.
    """
    requested = recipe.compare.processes
    gpus = visible_gpus()
    if gpus:
        if requested != "auto" and requested > len(gpus):
            raise UserError(
                f"compare.processes is {requested}, and this machine shows {len(gpus)} GPU{'s' * (len(gpus) != 1)}: expected one GPU "
                "for each. Lower --processes, or leave it out."
            )
        count = max(1, min(runs, len(gpus) if requested == "auto" else requested))
        return Places(count, gpus=gpus[:count])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(cores, int(os.environ.get("OMP_NUM_THREADS") or cores))
    count = requested if requested != "auto" else min(cores, _by_memory(recipe, examples) if runs > 1 else 1)
    count = max(1, min(count, runs))
    return Places(count, threads=max(1, min(threads, cores // count)))


def visible_gpus() -> tuple[str, ...]:
    """The GPUs as ``CUDA_VISIBLE_DEVICES`` names them; creates no CUDA context."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(number) for number in range(count))


def _by_memory(recipe: Recipe, examples: PreferenceExamples) -> int:
    import psutil

    each = run_bytes(recipe, examples)
    free = int(psutil.virtual_memory().available * _SHARE_OF_MEMORY)
    log.debug("a run takes about %.1f GiB, %.1f GiB are free for them", each / (1 << 30), free / (1 << 30))
    return max(1, free // each)


def run_bytes(recipe: Recipe, examples: PreferenceExamples) -> int:
    """Estimated peak resident bytes of one run on a CPU."""
    from mrpo_pipeline.plan.architecture import architecture_of, read_model_config, weight_bytes
    from mrpo_pipeline.plan.stage_two import grouping
    from mrpo_pipeline.plan.training_memory import training_memory
    from mrpo_pipeline.plan.worst_batch import PairLengths
    from mrpo_pipeline.policy.model import base_dtype

    policy, training = recipe.required_policy(), recipe.training
    config: Any = read_model_config(policy)
    if config is None:
        return 1 << 62  # of unknown size: one run at a time
    dtype = base_dtype(policy, config)
    architecture = architecture_of(config, policy.trust_remote_code)
    lengths = PairLengths.of(examples, grouped=grouping(recipe)(examples))
    found = training_memory(policy, architecture, training, lengths, dtype=dtype, device="cpu").resident_bytes
    return found or _TIMES_WEIGHTS * weight_bytes(policy, architecture, dtype) + _IMPORTS_BYTES
