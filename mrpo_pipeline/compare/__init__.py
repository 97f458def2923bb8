"""Compare methods × seeds on one cache: differences with intervals, and which reference to drop.

``run`` is the entry point. ``methods`` lists the methods, ``runs`` prepares and executes their runs, ``job`` is one run,
``parallelism`` and ``worker_pool`` execute several at a time; ``comparisons`` and ``verdict`` evaluate them (statistics:
``mrpo_pipeline.evaluation.intervals``).
"""

from mrpo_pipeline.compare.methods import Contender, contenders
from mrpo_pipeline.compare.results import Comparison
from mrpo_pipeline.compare.run import compare_recipe

__all__ = ["Comparison", "Contender", "compare_recipe", "contenders"]
