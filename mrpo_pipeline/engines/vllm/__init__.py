"""The vLLM engine: a process of its own that takes token ids and gives log-probs."""
