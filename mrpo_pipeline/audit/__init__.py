"""What the cached references are worth on these pairs, and which of them look broken, before any training.

sample              which completions are looked at token by token, and what each cache holds of them
logprob_stats       what one reference's own numbers look like          pairwise        two references side by side
tokenization        whether the rows are of these texts and ids
findings            what a finding is    thresholds    where one begins  row_checks, logprob_checks, faults   the rules
warnings            what else is worth knowing
reference_metrics   who ranks the pairs rightly, how surely             weight_preview  who would count under which weighting
result, table, run  the audit as data, at a terminal, and how it is made
"""

from mrpo_pipeline.audit.findings import Finding
from mrpo_pipeline.audit.result import Audit
from mrpo_pipeline.audit.run import audit_pairs, audit_recipe, readers_of
from mrpo_pipeline.audit.tokenization import Readers

__all__ = ["Audit", "Finding", "Readers", "audit_pairs", "audit_recipe", "readers_of"]
