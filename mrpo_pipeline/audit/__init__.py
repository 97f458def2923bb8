"""How well the cached references rank these pairs, and which of them look broken, before any training.

sampled_tokens      the completions whose tokens are examined, and what each cache holds of them
logprob_stats       statistics of one reference's log-probs      reference_copies  two references compared
cached_ids_check    cached ids against the text
findings, thresholds, faults, logprob_checks                     from statistics to findings
warnings            weak or unusual references that are not faulty
reference_metrics   ranking accuracy, Δ and nats per byte        weight_preview    weights by each weighting
result, table, run
"""

from mrpo_pipeline.audit.cached_ids_check import Readers
from mrpo_pipeline.audit.findings import Finding
from mrpo_pipeline.audit.result import Audit
from mrpo_pipeline.audit.run import audit_pairs, audit_recipe, readers_of

__all__ = ["Audit", "Finding", "Readers", "audit_pairs", "audit_recipe", "readers_of"]
