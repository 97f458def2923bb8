"""What a run would score and train, and what that takes. No weights are read.

sampling, extrapolation        every pair, a sample of prompts, and from the sample to all
completions, stage_one         the completions to score, their tokens by each reference's tokenizer, bytes of the cache
architecture                   a model by its configuration
gpus, hardware                 the device that hours and memory are for
activation_memory              memory of a model that has shapes alone
scoring_memory, worst_batch, training_memory, stage_two
result, table                  the plan as data, and for the terminal
"""

from mrpo_pipeline.plan.result import Plan
from mrpo_pipeline.plan.run import plan_run

__all__ = ["Plan", "plan_run"]
