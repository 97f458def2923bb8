"""Faults that only the log-probs show."""

from __future__ import annotations

import numpy as np

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.findings import SUSPECT, Evidence, Finding
from mrpo_pipeline.audit.logprob_stats import LogprobStats
from mrpo_pipeline.audit.statistics import auc_error


def constant(one: Evidence) -> Finding | None:
    """Log-probs that do not depend on the text."""
    stats = one.stats
    if stats.relative_std < thresholds.CONSTANT_STD:
        why = f"their standard deviation is {stats.relative_std:.2%} of their mean"
    elif stats.by_position > thresholds.CONSTANT_BY_POSITION:
        why = f"the token's position explains {stats.by_position:.1%} of their variance"
    else:
        return None
    return one.finding(
        "constant",
        f"Its log-probs do not depend on the text ({why}): the weights were not loaded, or the values are filler.",
    )


def rounding(one: Evidence) -> Finding | None:
    """Log-probs in coarse steps."""
    stats = one.stats
    if stats.significant_bits <= thresholds.COARSE_BITS:
        kind = f"19 in 20 have at most {stats.significant_bits:.0f} significant bits (float32 has 24, bfloat16 8, fp8 e4m3 4)"
    elif stats.distinct < thresholds.FEW_DISTINCT:
        kind = f"only {stats.distinct:.0%} of them are distinct"
    else:
        return None
    return one.finding(
        "rounding",
        f"Its log-probs come in coarse steps: {kind}. The model's head or the storage rounded them, and the error grows with the length.",
    )


def fault_by_logprobs(one: Evidence) -> Finding | None:
    """The fault that the log-probs show where the rows are in order, or None."""
    stats = one.stats
    inconsistent = (
        stats.shared_prefixes * stats.inconsistent >= thresholds.INCONSISTENT_CASES
        and stats.inconsistent >= thresholds.INCONSISTENT_SHARE
    )
    # With bad padding, log-probs at shifted positions also depend little on their tokens, but unpadded completions are right.
    dependence = _dependence(stats, inconsistent)
    if dependence is not None and not (inconsistent and _follows_length(stats, errors=4)):
        return one.finding(
            "shuffled",
            "Its log-probs do not depend on their tokens: permuted among completions of the same kind they would fit as well "
            f"({dependence:+.1f} standard deviations from chance; a model has dozens). They belong to other completions.",
        )
    if inconsistent:
        return one.finding(
            "padding",
            f"In {stats.inconsistent:.0%} of {stats.shared_prefixes:,} cases, two completions of one prompt that begin with the same "
            "tokens have different log-probs for them: they depend on the batch, so padding was read as text (wrong side, or "
            "unmasked), or dropout was on.",
        )
    easy = _easy_only_in_longest(one)
    if easy is not None:
        return one.finding(
            "padding",
            f"It predicts only {easy:.0%} of the completions well, those that are the longest of their batch: padding is on the wrong "
            "side, or not masked.",
        )
    foreign_template = one.tokenization.foreign_prompts > thresholds.MOST
    fix = "Remove `template:` from its entry and score again (`mrpo score-refs RECIPE`)."
    if one.shows_another_template:
        return one.finding(
            "template",
            f"The first token of a completion costs {stats.first:.1f} nats, {stats.first_over_text:.1f} more than by the text's token "
            f"frequencies, while the rest is predicted well ({stats.rest:.1f} nats): the prompt ends in another model's chat template, "
            "or none.",
            fix=f"The recipe's template is not the model's own. {fix}" if foreign_template else None,
        )
    if foreign_template and not one.plain_by_choice:
        return one.finding(
            "template",
            "The recipe's chat template is not the model's own. Its log-probs show no harm.",
            severity=SUSPECT,
            fix=f"If this is unintended: {fix[0].lower()}{fix[1:]}",
        )
    return None


def _dependence(stats: LogprobStats, inconsistent: bool) -> float | None:
    """How far the log-probs depend on their tokens, in standard deviations; None where that is sound."""
    # Few tokens of one length are evidence only where prefixes are inconsistent as well.
    few = stats.same_length_tokens < thresholds.SAME_LENGTH_TOKENS
    weak = stats.dependence_same_length < thresholds.DEPENDENCE_SAME_LENGTH
    within = stats.dependence_same_length if not few or (inconsistent and weak) else np.inf
    lowest = float(np.nanmin([stats.dependence, within, np.inf]))
    # Log-probs of texts of the same length depend on their tokens a little, but far less than among texts of any length.
    exchanged = inconsistent and lowest < min(thresholds.DEPENDENCE_INCONSISTENT, stats.dependence / 4)
    return lowest if lowest < thresholds.DEPENDENCE or exchanged else None


def _easy_only_in_longest(one: Evidence) -> float | None:
    """The share of completions whose first, or last, token is easy, if these look like the longest of their batch; else None.

    The first token is evidence only if the model predicts the rest of the text: a model that does not may know only the kind of text
    that is longer. The last token is no evidence if completions with a common prefix are consistent, nor for a model without turns,
    which ends long texts more readily even if it is sound.
    """
    stats = one.stats
    surprised = one.is_surprised and one.expects_turns
    lost = stats.first_over_unigram - 2 * stats.first_error > thresholds.FIRST_LOST
    # A model that is robust to bad padding is surprised less: then the relation to the length has to be stronger.
    begins = (surprised and _follows_length(stats)) or (lost and _follows_length(stats, errors=5))
    if begins and stats.first_easy <= thresholds.LONGEST_OF_BATCH and stats.rest_over_unigram < thresholds.REST_KNOWN:
        return stats.first_easy
    ends = one.expects_turns and (surprised or one.ends_late) and stats.last > 1
    ruled_out = stats.shared_prefixes >= thresholds.CONSISTENT_CASES or stats.last_easy > thresholds.LONGEST_OF_BATCH
    return stats.last_easy if ends and not ruled_out and stats.last_auc_length > thresholds.AUC_LENGTH else None


def _follows_length(stats: LogprobStats, errors: float = 0) -> bool:
    """Whether completions with an easy first token have the longer prompts, by AUC and by this many standard errors."""
    easy = stats.first_easy * stats.completions
    error = auc_error(easy, stats.completions - easy)
    return stats.first_auc_prompt > max(thresholds.AUC_PROMPT, 0.5 + errors * error if errors else 0)
