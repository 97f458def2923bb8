"""What a trained policy is worth on held-out pairs, in figures that may be compared across methods."""

from mrpo_pipeline.evaluation.preferences import PolicyFigures, evaluate_policy
from mrpo_pipeline.evaluation.run import Evaluation, evaluate_recipe
from mrpo_pipeline.evaluation.samples import Sample

__all__ = ["Evaluation", "PolicyFigures", "Sample", "evaluate_policy", "evaluate_recipe"]
