"""Multi-Reference Preference Optimization (arXiv 2405.16388) from a cache of reference log-probs.

Data flows one way: pairs → rendering → engines → cache → targets → policy → evaluation. Importing this package loads
nothing heavy.
"""

__version__ = "0.1.0"
