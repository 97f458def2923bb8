"""The words that the page uses, for readers who are no statisticians."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A term and what it means."""

    term: str
    means: str


WORDS = (
    Word(
        "Pair",
        "A prompt with two answers, of which somebody chose one. Held-out pairs were kept from training, by prompt.",
    ),
    Word("Policy", "The model that is trained."),
    Word(
        "Reference", "A frozen model that training is held near. The first one, the anchor, is where the policy starts."
    ),
    Word("DPO", "Training on pairs near a single reference: the plain way, which several references have to beat."),
    Word("MRPO", "The same with several references made into one target, by default by their weighted harmonic mean."),
    Word("Multi-DPO", "One DPO loss for each reference, added up with weights."),
    Word(
        "Prefers chosen",
        "The share of held-out pairs whose chosen answer the policy itself finds likelier. Ties count one half.",
    ),
    Word(
        "Moved to chosen",
        "The share on which the policy’s liking moved towards the chosen answer, compared with its start.",
    ),
    Word("Point", "One percentage point: from 70% to 71%."),
    Word(
        "95% interval",
        "The range of values that the data are compatible with. Made this way, such a range holds the true value in 95 of 100 "
        "comparisons. The wider it is, the less is known.",
    ),
    Word(
        "Seed",
        "The number that decides what chance decides: first weights, order of pairs. Another seed, another result.",
    ),
    Word(
        "p",
        "How often chance alone would give so large a difference if there were none. Below 0.05 is the usual bar. Look at many "
        "differences and some pass it by luck: the corrected p makes up for that.",
    ),
    Word(
        "More pairs to see 1 point",
        "About how many more held-out pairs it would take to tell a difference of one point from chance; a dash where seeds "
        "differ so much that only more seeds would help.",
    ),
    Word("Nat", "The unit of log-probs. Per byte of text it can be compared between models with different tokenizers."),
    Word(
        "Δ",
        "A reference’s log-prob of the chosen answer minus that of the rejected one: positive where it ranks them rightly.",
    ),
    Word(
        "Reward margin", "How much further the policy moved towards the chosen answer than the rejected one, times β."
    ),
    Word(
        "Effective references",
        "For how many references the target counts: 1 where a single one decides every pair, K where all K count alike.",
    ),
)
