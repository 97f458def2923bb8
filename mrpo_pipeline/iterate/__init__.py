"""Rounds of training, each with the previous round's policy as its anchor."""

from mrpo_pipeline.iterate.run import Round, iterate_recipe, rounds_table

__all__ = ["Round", "iterate_recipe", "rounds_table"]
