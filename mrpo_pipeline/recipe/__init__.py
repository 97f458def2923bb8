"""The recipe: one YAML file that describes a run, as checked settings.

Every command reads the parts it needs. Settings given on the command line arrive as overrides by dotted key and win
over the file.
"""

from mrpo_pipeline.recipe.check import method_for, parse_recipe
from mrpo_pipeline.recipe.load import load_recipe, parse_value, shipped_recipes
from mrpo_pipeline.recipe.settings import (
    TRAINING_DEFAULTS,
    Compare,
    Evaluation,
    Limits,
    Lora,
    Method,
    Pairs,
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
