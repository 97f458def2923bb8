"""What the cached references are worth on these pairs, and which of them look broken, before any training.

sample      which completions are looked at token by token, and what each cache holds of them
words       surprisal by word, where references with different tokenizers can be set side by side
patterns    what one reference's own numbers look like          together   two references side by side
origin      whether the rows are of these texts and ids
findings    what a finding is      by_rows, by_numbers   the rules      faults   all of them; remarks   the rest
figures     who ranks the pairs rightly, how surely             weighing   who would count under which weighting
report, table                                                   run        the whole
"""

from mrpo_pipeline.audit.findings import Finding
from mrpo_pipeline.audit.report import Audit
from mrpo_pipeline.audit.run import audit_pairs, audit_recipe, readers_of
from mrpo_pipeline.audit.tokenization import Readers

__all__ = ["Audit", "Finding", "Readers", "audit_pairs", "audit_recipe", "readers_of"]
