"""Faults that only the log-probs show."""

from __future__ import annotations

import numpy as np

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.findings import SUSPECT, Evidence, Finding, again
from mrpo_pipeline.audit.logprob_stats import Patterns
from mrpo_pipeline.audit.statistics import area_error


def fault_by_numbers(one: Evidence) -> Finding | None:
    """What the log-probs show where nothing in the rows is amiss."""
    patterns, origin = one.patterns, one.origin
    inconsistent = (
        patterns.shared * patterns.shared_apart >= thresholds.APART_CASES
        and patterns.shared_apart >= thresholds.APART_SHARE
    )
    # Few completions of one length tell something only where it is plain that numbers are not what they should be.
    few = patterns.alike < thresholds.ALIKE_TOKENS
    alike = (
        np.inf
        if few and not (inconsistent and patterns.belonging_alike < thresholds.BELONGING_ALIKE)
        else patterns.belonging_alike
    )
    belonging = np.nanmin([patterns.belonging, alike, np.inf])
    # Numbers of texts of the same length go with their tokens a little, but far less than among texts of any length.
    exchanged = inconsistent and belonging < min(thresholds.EXCHANGED, patterns.belonging / 4)
    # Numbers taken some places off belong to their tokens as little, but to the right text where nothing was padded.
    if (belonging < thresholds.BELONGING or exchanged) and not (inconsistent and _goes_with_length(patterns, errors=4)):
        return Finding(
            one.name,
            "shuffled",
            "Its log-probs do not belong to their tokens: dealt out anew among completions of the same kind they would go with "
            f"them as well ({belonging:+.1f} standard deviations from chance; a model's are dozens away). They are those "
            f"of other completions. {again(one.name)}",
        )
    surprised = one.is_surprised and one.reads_turns
    if inconsistent:
        return Finding(
            one.name,
            "padding",
            f"In {patterns.shared_apart:.0%} of {patterns.shared:,} cases where two completions of one prompt begin with the same "
            "tokens, it gives those tokens different log-probs: its numbers depend on what stood beside them in the batch, so "
            f"padding was read as text (on the wrong side, or unmasked), or dropout was on. {again(one.name)}",
        )
    by_prompt, by_length = _lost_behind_pads(one, surprised)
    if by_prompt or by_length:
        share = patterns.first_easy if by_prompt else patterns.last_easy
        return Finding(
            one.name,
            "padding",
            f"It predicts only the {share:.0%} of completions that are the longest of their batch as it should, and is lost on the "
            f"others: padding stands on the wrong side, or is not masked. {again(one.name)}",
        )
    if one.shows_another_template:
        own = origin.not_own_prompts > thresholds.MOST
        return Finding(
            one.name,
            "template",
            f"The first token of a completion costs it {patterns.first:.1f} nats, {patterns.first_over_text:.1f} more than a mere "
            f"table of the text's tokens would, while it predicts the rest well ({patterns.rest:.1f} nats): what stands before the "
            "completion is strange to it. Another model's chat template, or none. "
            + (
                "The recipe gives it a template that is not the model's own: take `template:` out of its entry and score it again "
                "(`mrpo score-refs RECIPE`)."
                if own
                else again(one.name)
            ),
        )
    if origin.not_own_prompts > thresholds.MOST and not one.plain_by_choice:
        return Finding(
            one.name,
            "template",
            "The recipe gives it a chat template that is not the model's own, which has one; its numbers show no harm beyond what "
            "models differ by. If that is not meant, take `template:` out of its entry and score it again (`mrpo score-refs RECIPE`).",
            SUSPECT,
        )
    return None


def _lost_behind_pads(one: Evidence, surprised: bool) -> tuple[bool, bool]:
    """Whether only those completions begin well whose prompts are the longest of their batch, and whether only the longest end well.

    A model that is lost on the rest of the text as well reads text that is foreign to it, and what it does know may well be the
    longer texts; so the first is asked of models that are not. Where shared beginnings have equal numbers whatever follows them,
    the second is refuted. A model without turns ends a long text more readily than a short one, sound as it is: it is not asked.
    """
    patterns = one.patterns
    # Of a batch a minority is the longest; where more is easy, texts of two kinds are what differs.
    few_begin, few_end = (
        patterns.first_easy <= thresholds.LONGEST_OF_BATCH,
        patterns.last_easy <= thresholds.LONGEST_OF_BATCH,
    )
    at_a_loss = patterns.first_over_table - 2 * patterns.first_error > thresholds.AT_A_LOSS
    # A model that copes with the pads it reads is surprised less: then the relation has to rest on more.
    by_prompt = (
        few_begin
        and patterns.rest_over_table < thresholds.KNOWS_THE_REST
        and ((surprised and _goes_with_length(patterns)) or (at_a_loss and _goes_with_length(patterns, errors=5)))
    )
    refuted = patterns.shared >= thresholds.SHARED_CASES
    by_length = one.reads_turns and not refuted and (surprised or one.ends_late) and patterns.last > 1
    by_length = by_length and few_end and patterns.last_by_length > thresholds.BY_LENGTH
    return by_prompt, by_length


def _goes_with_length(patterns: Patterns, errors: float = 0) -> bool:
    """Whether completions with an easy first token have the longer prompts: by how much, and by how many standard errors."""
    easy = patterns.first_easy * patterns.completions
    above = patterns.first_by_prompt - 0.5
    return patterns.first_by_prompt > thresholds.BY_PROMPT and above > errors * area_error(
        easy, patterns.completions - easy
    )


def rounding(one: Evidence) -> Finding | None:
    """Whether the log-probs come in steps."""
    patterns = one.patterns
    if patterns.bits <= thresholds.COARSE_BITS:
        kind = f"19 in 20 of them do with {patterns.bits:.0f} significant bits (float32 has 24, bfloat16 8, fp8 e4m3 4)"
    elif patterns.distinct < thresholds.FEW_DISTINCT:
        kind = f"only {patterns.distinct:.0%} of them are different numbers"
    else:
        return None
    return Finding(
        one.name,
        "rounding",
        f"Its log-probs come in coarse steps: {kind}. They were rounded, to fp8 or the like, by the head or by "
        f"what stored them, and the error grows with the length. {again(one.name)}",
    )
