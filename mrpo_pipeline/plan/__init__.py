"""Before anything is paid for: what a run would score and train, and what that takes. No weights are read.

population, collector     every pair as numbers, the text of a sample        estimate           from the sample to all
wanted, lengths           the completions to score, and their lengths        cache_bytes        what they take in shards
architecture              a model by its configuration                       gpus, machine      what hours are told for
live_bytes                memory of a model that has shapes alone            stage_one, scoring_memory
micro_batch, training_memory, stage_two                                      report, table      what is said of it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrpo_pipeline.plan.report import Plan
    from mrpo_pipeline.plan.run import plan_run

__all__ = ["Plan", "plan_run"]


def __getattr__(name: str) -> Any:
    # The process that reads a part of the pairs imports this package, and needs no torch.
    if name == "plan_run":
        from mrpo_pipeline.plan.run import plan_run

        return plan_run
    if name == "Plan":
        from mrpo_pipeline.plan.report import Plan

        return Plan
    raise AttributeError(name)
