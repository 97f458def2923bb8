"""Verify cached log-probs: recompute some with plain transformers and compare.

check_numbers(recipe, "base", wanted, 64)        # RunError if they differ by more than the dtype allows
for found in verify_cache(recipe): …             # checksums of all shards, and the check of every reference
"""

from mrpo_pipeline.verify.check import check_numbers, measure_drift
from mrpo_pipeline.verify.result import Drift
from mrpo_pipeline.verify.tolerances import Limits, limits_for
from mrpo_pipeline.verify.verify import Verified, verify_cache

__all__ = ["Drift", "Limits", "Verified", "check_numbers", "limits_for", "measure_drift", "verify_cache"]
