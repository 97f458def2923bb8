"""What a model is: how it is found, checked, loaded and merged, and its hidden states to log-probs."""
