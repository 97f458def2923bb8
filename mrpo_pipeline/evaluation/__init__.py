"""What a trained policy is worth on held-out pairs, in figures that may be compared across methods."""

from mrpo_pipeline.evaluation.generations import Sample
from mrpo_pipeline.evaluation.held_out import PolicyFigures, evaluate_policy
from mrpo_pipeline.evaluation.run import Evaluation, evaluate_recipe

__all__ = ["Evaluation", "PolicyFigures", "Sample", "evaluate_policy", "evaluate_recipe"]
