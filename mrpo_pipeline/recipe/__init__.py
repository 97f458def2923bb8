"""The recipe: one YAML file that describes a run, as validated settings.

Every command reads the parts it needs. Command-line settings are overrides by dotted key and take precedence over the file.
"""

from mrpo_pipeline.recipe.check import method_for, parse_recipe
from mrpo_pipeline.recipe.load import load_recipe, parse_value, shipped_recipes
from mrpo_pipeline.recipe.pairs_settings import Pairs
from mrpo_pipeline.recipe.settings import (
    TRAINING_DEFAULTS,
    Compare,
    Evaluation,
    Limits,
    Lora,
    Method,
    Policy,
    Recipe,
    Scoring,
)

__all__ = [
    "TRAINING_DEFAULTS",
    "Compare",
    "Evaluation",
    "Limits",
    "Lora",
    "Method",
    "Pairs",
    "Policy",
    "Recipe",
    "Scoring",
    "load_recipe",
    "method_for",
    "parse_recipe",
    "parse_value",
    "shipped_recipes",
]
