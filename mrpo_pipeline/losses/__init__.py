"""Preference losses: ``functional`` has each one's formula, ``preference`` the way to all of them, ``settings`` the recipe's keys."""
