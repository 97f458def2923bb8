"""Methods × seeds on one cache, side by side: what is shown, what is not, and which reference to drop.

``methods`` says who takes part, ``job`` is one run, ``parallelism`` and ``worker_pool`` have many made at a time, ``comparisons`` and
``verdict`` say what they show (the statistics are in ``mrpo_pipeline.evaluation.intervals``), ``run`` is the whole.
"""

from mrpo_pipeline.compare.methods import Contender, contenders
from mrpo_pipeline.compare.results import Comparison
from mrpo_pipeline.compare.run import compare_recipe

__all__ = ["Comparison", "Contender", "compare_recipe", "contenders"]
