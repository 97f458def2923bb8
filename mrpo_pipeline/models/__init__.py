"""Find, check, load and merge models, and turn their hidden states into log-probs."""
