"""Preference losses as pure functions of log-probs: ``functional`` has each one's formula, ``preference`` the way to all of them."""

from mrpo_pipeline.losses.preference import LOSSES, PreferenceLoss, check_loss, preference_loss, sft_loss

__all__ = ["LOSSES", "PreferenceLoss", "check_loss", "preference_loss", "sft_loss"]
