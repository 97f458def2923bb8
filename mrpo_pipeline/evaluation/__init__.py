"""Evaluate a trained policy on held-out pairs, by metrics that are comparable across methods.

Imported at first use: the report reads the files of an evaluation without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrpo_pipeline import lazy

if TYPE_CHECKING:
    from mrpo_pipeline.evaluation.generations import Sample
    from mrpo_pipeline.evaluation.held_out import PolicyFigures, evaluate_policy
    from mrpo_pipeline.evaluation.run import Evaluation, evaluate_recipe

__all__ = ["Evaluation", "PolicyFigures", "Sample", "evaluate_policy", "evaluate_recipe"]

__getattr__ = lazy(
    __name__,
    {
        "Evaluation": "run",
        "PolicyFigures": "held_out",
        "Sample": "generations",
        "evaluate_policy": "held_out",
        "evaluate_recipe": "run",
    },
)
