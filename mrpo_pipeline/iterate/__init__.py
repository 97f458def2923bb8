"""Rounds of training, each against the policy of the round before as its anchor."""

from mrpo_pipeline.iterate.run import Round, iterate_recipe, rounds_table

__all__ = ["Round", "iterate_recipe", "rounds_table"]
