"""The engine of a reference on a server: log-probs from a running vLLM."""

from mrpo_pipeline.engines.served.engine import ServedEngine

__all__ = ["ServedEngine"]
