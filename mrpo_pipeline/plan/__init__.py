"""Cost of a run before it starts: completions to score, tokens, cache bytes, memory, hours. Loads no weights.

sampling, extrapolation        the pairs, a sample of their prompts, totals from the sample
completions, stage_one         completions to score, tokens by each reference's tokenizer, cache bytes
architecture                   parameter counts from a model's configuration
gpus, hardware                 the device that hours and memory are for
activation_memory              peak activation memory, traced on fake tensors
scoring_memory, training_memory, worst_batch, stage_two
result, table                  the plan as data and as text

Modules are imported at first use: operation counts and the table of GPUs need neither polars nor pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrpo_pipeline import lazy

if TYPE_CHECKING:
    from mrpo_pipeline.plan.result import Plan
    from mrpo_pipeline.plan.run import plan_run

__all__ = ["Plan", "plan_run"]

__getattr__ = lazy(__name__, {"Plan": "result", "plan_run": "run"})
