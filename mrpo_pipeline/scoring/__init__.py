"""Stage one: score the completions that the cache lacks, in this process, in several, or on a Ray cluster."""

from mrpo_pipeline.scoring.repair import Repaired, repair_cache
from mrpo_pipeline.scoring.report import ReferenceReport
from mrpo_pipeline.scoring.run import score_references

__all__ = ["ReferenceReport", "Repaired", "repair_cache", "score_references"]
