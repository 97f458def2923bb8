"""Faults that ids, texts and counts tell outright."""

from __future__ import annotations

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.findings import Evidence, Finding, again


def fault_by_rows(one: Evidence, alike: str | None) -> Finding | None:
    """The fault that the rows show; None where they are in order.

    Args:
        one: the reference.
        alike: another reference whose rows hold the same ids, if there is one.
    """
    origin = one.origin
    moved = (
        ("its tokens end elsewhere than their completions do", origin.other_text, origin.other_text > thresholds.SOME),
        (
            "its token ids are those of another completion",
            origin.other_ids * origin.ids_of_others,
            origin.other_ids > thresholds.SOME and origin.ids_of_others > thresholds.MOST,
        ),
        (
            "its prompts have the token counts of other completions' prompts",
            origin.other_prompts,
            origin.other_prompts > thresholds.SOME and origin.prompt_moved,
        ),
    )
    for what, share, holds in moved:
        if holds:
            return Finding(
                one.name,
                "shuffled",
                f"In {share:.0%} of the completions looked at, {what}: its numbers stand under other texts' names (shuffled "
                f"rows, an order that was lost). {again(one.name)}",
            )
    if origin.not_own_ids > thresholds.MOST:
        return Finding(
            one.name,
            "tokenizer",
            f"The recipe gives it a tokenizer that reads {origin.not_own_ids:.0%} of the completions as other ids than the "
            "model's own tokenizer does: the model was fed ids that mean other text to it. Take `tokenizer:` out of its entry, "
            f"or name one with the model's vocabulary, and score it again (`mrpo score-refs RECIPE`).",
        )
    if origin.other_ids > thresholds.SOME and origin.other_edges < thresholds.EDGES * origin.other_ids:
        whose = f", and they are those that {alike} has" if alike else ""
        return Finding(
            one.name,
            "tokenizer",
            f"The token ids of {origin.other_ids:.0%} of its completions are not those of its own tokenizer{whose}: the model was "
            f"fed another tokenizer's ids. {again(one.name)}",
        )
    if origin.puts_bos_twice:
        return Finding(
            one.name,
            "bos",
            "Its template and its tokenizer both put the first token of a prompt (BOS), so that it stands there twice: mend "
            "`template:` in its entry and score it again (`mrpo score-refs RECIPE`).",
        )
    if (
        origin.other_prompts > thresholds.SOME
        and origin.one_more > thresholds.NEARLY_ALL * origin.other_prompts
        and origin.begins_alike
    ):
        return Finding(
            one.name,
            "bos",
            f"The prompts of {origin.one_more:.0%} of its completions were read with exactly one token more than its own template "
            f"and tokenizer give: a doubled BOS. {again(one.name)}",
        )
    if origin.other_prompts > thresholds.SOME or origin.other_ids > thresholds.SOME:
        what = (
            f"the prompts of {origin.other_prompts:.0%} of its completions were read with another number of tokens"
            if origin.other_prompts > thresholds.SOME
            else f"{origin.other_ids:.0%} of its completions begin or end with other tokens"
        )
        return Finding(
            one.name,
            "template",
            f"By its own tokenizer and template {what}: it was scored with another chat template. {again(one.name)}",
        )
    return None
