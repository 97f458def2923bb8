"""Preference losses: ``functional`` defines each, ``preference`` computes their weighted sum, ``settings`` holds the recipe's keys."""
