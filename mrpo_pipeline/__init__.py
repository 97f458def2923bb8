"""Multi-Reference Preference Optimization (arXiv 2405.16388) from a cache of reference log-probs.

Data flows one way: pairs → rendering → engines → cache → targets → policy → evaluation. The public API (docs/python.md) is
imported at first use, so importing this package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrpo_pipeline.audit import audit_recipe
    from mrpo_pipeline.compare import compare_recipe
    from mrpo_pipeline.errors import RunError, UserError
    from mrpo_pipeline.evaluation import evaluate_recipe
    from mrpo_pipeline.iterate import iterate_recipe
    from mrpo_pipeline.plan import plan_run
    from mrpo_pipeline.policy.run import train_recipe
    from mrpo_pipeline.recipe import Recipe, load_recipe
    from mrpo_pipeline.scoring import score_references
    from mrpo_pipeline.targets.compute import compute_targets
    from mrpo_pipeline.targets.settings import TargetSettings

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "RunError",
    "TargetSettings",
    "UserError",
    "__version__",
    "audit_recipe",
    "compare_recipe",
    "compute_targets",
    "evaluate_recipe",
    "iterate_recipe",
    "load_recipe",
    "plan_run",
    "score_references",
    "train_recipe",
]


def lazy(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` that imports a module when one of its names is used.

    Args:
        modules: each exported name, and the submodule that defines it.
    """

    def attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return attribute


__getattr__ = lazy(
    __name__,
    {
        "Recipe": "recipe",
        "RunError": "errors",
        "TargetSettings": "targets.settings",
        "UserError": "errors",
        "audit_recipe": "audit",
        "compare_recipe": "compare",
        "compute_targets": "targets.compute",
        "evaluate_recipe": "evaluation",
        "iterate_recipe": "iterate",
        "load_recipe": "recipe",
        "plan_run": "plan",
        "score_references": "scoring",
        "train_recipe": "policy.run",
    },
)


def __dir__() -> list[str]:
    return __all__
