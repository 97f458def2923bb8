"""From hidden states to log-probs of given tokens, without ever holding (positions × vocabulary) for a whole batch."""

from mrpo_pipeline.head.head import Head
from mrpo_pipeline.head.logits import LogitForm

__all__ = ["Head", "LogitForm"]
