"""Prepare pairs, join them with cached log-probs, and make the training examples of stage two."""
