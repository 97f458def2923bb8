"""Thresholds of findings and warnings, set on the pools of seeds 1 to 5, 29, 57 and 61 of ``benchmarks/bench_audit.py``."""

# Minimum sample for checks by log-probs. One prompt does not show how a model reads prompts.
MIN_COMPLETIONS, MIN_PROMPTS, MIN_TOKENS = 20, 20, 400

# Shares of rows: enough for a fault; most; nearly all.
SOME, MOST, NEARLY_ALL = 0.05, 0.5, 0.9
# Of the rows with different ids, the share that differs only at the edges.
EDGES_ONLY = 0.8

# Constant log-probs: standard deviation over mean; share of the variance that the position explains.
CONSTANT_STD, CONSTANT_BY_POSITION = 0.01, 0.99
# Rounded log-probs: significant bits that 19 in 20 need; the bits of 16-bit storage; distinct values per log-prob.
COARSE_BITS, HALF_BITS, FEW_DISTINCT = 8, 16, 0.5
# Exact zeros, and the near-zeros that a model's confident tokens give, as a share of them.
ZEROS, NEAR_ZEROS = 0.02, 1 / 3

# Two references: nats per token within which they are copies; relative difference within which they are one model.
COPY_NATS, SAME_MODEL = 1e-3, 0.03

# Completions of one prompt with a shared prefix: inconsistent cases, their share, and consistent cases that rule out bad padding.
INCONSISTENT_CASES, INCONSISTENT_SHARE, CONSISTENT_CASES = 3, 0.1, 20

# Dependence of log-probs on their tokens below which they belong to other texts, in standard deviations from chance (a sound model
# has dozens): overall; within one length; where prefixes are inconsistent. And the number of tokens that the second needs.
DEPENDENCE, DEPENDENCE_SAME_LENGTH, DEPENDENCE_INCONSISTENT, SAME_LENGTH_TOKENS = 5, 3, 10, 1000

# Nats of the first token above a unigram table. A sound model on a language that it does not know: 0.5 (SmolLM2-135M-Instruct,
# Chinese); behind another model's template: 1 to 5.
SURPRISE = 0.9
# Effective number of first tokens below which the surprise may be a property of the texts, such as records that begin with a brace.
FIRST_VARIETY = 4
# An unexpected end-of-turn token: nats, and times the other tokens' nats; and the same where the prompts are confirmed.
LATE_NATS, LATE_TIMES = 4, 3
VERY_LATE_NATS, VERY_LATE_TIMES = 8, 2

# Bad padding: the largest share of completions that are the longest of their batch; AUC of an easy first token against the prompt's
# length, and of an easy last token against the whole length; nats above the unigram tables of first tokens and of the rest.
LONGEST_OF_BATCH = 1 / 3
AUC_PROMPT, AUC_LENGTH = 0.72, 0.8
FIRST_LOST, REST_KNOWN = 1, 0.5

FAR = 3.0  # times the median of the other references
