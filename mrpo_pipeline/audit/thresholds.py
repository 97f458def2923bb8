"""Where findings and warnings begin. Set on pools of seeds 1 to 5, 29, 57 and 61 of ``benchmarks/bench_audit.py``."""

# Fewer are too few for what is true on average: one prompt says nothing of how a model reads prompts.
ENOUGH_COMPLETIONS, ENOUGH_PROMPTS, ENOUGH_TOKENS = 20, 20, 400

# Shares of rows that differ from their text: a fault and no odd row; a fault of nearly all.
SOME, MOST = 0.05, 0.5
NEARLY_ALL = 0.9
EDGES = 0.8  # of the rows with other ids, those that differ at their ends alone

# Filler: the standard deviation over the mean; the share of the variance that the token's place explains.
CONSTANT_SPREAD, CONSTANT_BY_PLACE = 0.01, 0.99
# Rounding: significant bits that 19 in 20 log-probs do with, and distinct values per log-prob.
COARSE_BITS, HALF_BITS, FEW_DISTINCT = 8, 16, 0.5
# Exact zeros among the log-probs, and how many fewer may lie near zero.
ZEROS, NEAR_ZEROS = 0.02, 1 / 3

# Two references: nats a token within which they are copies; root mean square over the spread within which they are one model.
COPY_APART, SAME_MODEL = 1e-3, 0.03

# Completions of one prompt that begin alike with different numbers: cases, and their share. Cases that refute bad padding.
APART_CASES, APART_SHARE, SHARED_CASES = 3, 0.1, 20

# Numbers of other tokens, in standard deviations from chance: a model's are dozens away. Among completions of one length there
# have to be so many tokens, or it has to be plain that numbers depend on the batch.
BELONGING, BELONGING_ALIKE, EXCHANGED, ALIKE_TOKENS = 5, 3, 10, 1000

# Nats by which the first token's cost exceeds that of a table: a sound model that reads another language than its own pays 0.5
# (SmolLM2-135M-Instruct, Chinese), one behind another model's template 1 to 5.
SURPRISE = 0.9
# Beginnings, in effect, below which a surprise at the first token may be the texts' own: records all begin with the same brace.
KINDS = 4
# The end-of-turn token: nats, and times the other tokens' nats, from which it is strange; the same where all else is confirmed.
LATE, LATE_TIMES = 4, 3
VERY_LATE, VERY_LATE_TIMES = 8, 2

# Bad padding: the share of completions that may be the longest of their batch; how far ease goes with the prompt's length and the
# completion's (areas under the curve); nats over a table of first tokens, and of the rest.
LONGEST_OF_BATCH = 1 / 3
BY_PROMPT, BY_LENGTH = 0.72, 0.8
AT_A_LOSS, KNOWS_THE_REST = 1, 0.5

FAR = 3.0  # times the others' median
