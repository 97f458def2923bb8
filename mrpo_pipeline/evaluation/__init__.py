"""What a trained policy is worth on held-out pairs, in figures that may be compared across methods.

Imported at first use: the report reads what an evaluation left, and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrpo_pipeline.evaluation.generations import Sample
    from mrpo_pipeline.evaluation.held_out import PolicyFigures, evaluate_policy
    from mrpo_pipeline.evaluation.run import Evaluation, evaluate_recipe

__all__ = ["Evaluation", "PolicyFigures", "Sample", "evaluate_policy", "evaluate_recipe"]

_MODULES = {
    "Evaluation": "run",
    "PolicyFigures": "held_out",
    "Sample": "generations",
    "evaluate_policy": "held_out",
    "evaluate_recipe": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
