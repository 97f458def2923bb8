"""Find the references that look broken, and by which fault.

Ids, text and token counts of the rows decide where they can; the log-probs are examined where the rows are in order. Every rule
concerns one reference alone, so that a majority with the same fault does not hide it; only copies take two.

A weak model, or one trained on other text, costs as many nats as a broken one: it gets a warning, not a finding. A doubled BOS that
the token counts do not show, and padding with little effect, change log-probs less than models differ; ``mrpo cache verify``, which
recomputes some, finds both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.findings import Evidence, Finding, recompute
from mrpo_pipeline.audit.logprob_checks import constant, fault_by_logprobs, rounding
from mrpo_pipeline.audit.reference_copies import Similarity


def find_faults(every: Sequence[Evidence], similar: Mapping[tuple[int, int], Similarity]) -> list[Finding]:
    """The findings, in the references' order."""
    copies = dict(_copies(every, similar))
    found: list[Finding] = []
    for at, one in enumerate(every):
        found += [copies[at]] if at in copies else _findings(one, _same_ids_as(at, every, similar))
    return found


def _findings(one: Evidence, same_ids: str | None) -> Iterator[Finding]:
    stats = one.stats
    if one.enough and (finding := constant(one)):
        yield finding
        return
    fault = fault_by_rows(one, same_ids) or (fault_by_logprobs(one) if one.enough else None)
    steps = rounding(one) if one.enough else None
    # Log-probs copied to texts of other lengths repeat.
    if steps and not (fault and fault.fault == "shuffled" and stats.significant_bits > thresholds.COARSE_BITS):
        yield steps
    elif one.enough and stats.zeros > max(thresholds.ZEROS, stats.near_zeros / thresholds.NEAR_ZEROS):
        yield one.finding(
            "zeros",
            f"{stats.zeros:.1%} of its log-probs are exactly 0 and only {stats.near_zeros:.1%} near 0, as a model's confident tokens "
            "are: they were never written, or masked.",
        )
    if fault:
        yield fault


def fault_by_rows(one: Evidence, same_ids: str | None) -> Finding | None:
    """The fault that ids, text and token counts show, or None.

    Args:
        same_ids: another reference whose rows have the same ids, if any.
    """
    own, some = one.tokenization, thresholds.SOME
    moved = (
        (own.wrong_ends > some, own.wrong_ends, "its tokens do not end where the completion does"),
        (
            own.different_ids > some and own.ids_of_others > thresholds.MOST,
            own.different_ids * own.ids_of_others,
            "its token ids are those of another completion",
        ),
        (
            own.different_prompts > some and own.prompts_permuted,
            own.different_prompts,
            "its prompt has the length of another completion's prompt",
        ),
    )
    for holds, share, what in moved:
        if holds:
            return one.finding(
                "shuffled",
                f"In {share:.0%} of the sampled completions {what}: rows are stored under the wrong completion ids.",
            )
    if own.foreign_ids > thresholds.MOST:
        return one.finding(
            "tokenizer",
            f"The recipe's tokenizer gives other ids than the model's own in {own.foreign_ids:.0%} of the completions.",
            fix="Remove `tokenizer:` from its entry, or name one with the model's vocabulary, and score again "
            "(`mrpo score-refs RECIPE`).",
        )
    if own.different_ids > some and own.different_edges < thresholds.EDGES_ONLY * own.different_ids:
        whose = f"; they are those of {same_ids}" if same_ids else ""
        return one.finding(
            "tokenizer",
            f"The token ids of {own.different_ids:.0%} of its completions are not those of its tokenizer{whose}: the model read another "
            "tokenizer's ids.",
        )
    if own.doubled_bos:
        return one.finding(
            "bos",
            "Its template and its tokenizer both add a BOS token, so prompts begin with two.",
            fix="Correct `template:` in its entry and score again (`mrpo score-refs RECIPE`).",
        )
    mostly_one_more = own.one_more_token > thresholds.NEARLY_ALL * own.different_prompts
    if own.different_prompts > some and own.same_first_token and mostly_one_more:
        return one.finding(
            "bos",
            f"The prompts of {own.one_more_token:.0%} of its completions had exactly one token more than by its template and tokenizer: a "
            "doubled BOS.",
        )
    if own.different_prompts > some:
        return one.finding(
            "template",
            f"The prompts of {own.different_prompts:.0%} of its completions had another number of tokens than by its template and "
            "tokenizer: it was scored with another chat template.",
        )
    if own.different_ids > some:
        return one.finding(
            "template",
            f"{own.different_ids:.0%} of its completions begin or end with other tokens than by its template and tokenizer: it was "
            "scored with another chat template.",
        )
    return None


def _copies(every: Sequence[Evidence], similar: Mapping[tuple[int, int], Similarity]) -> Iterator[tuple[int, Finding]]:
    """By the index of the copy: of two, the one whose ids are not its tokenizer's, else the later one."""
    for (a, b), two in similar.items():
        same = two.same_logps > thresholds.NEARLY_ALL
        if not same and not (two.same_ids > thresholds.NEARLY_ALL and two.mean_difference <= thresholds.COPY_NATS):
            continue
        if every[a].stats.relative_std < thresholds.CONSTANT_STD:
            continue  # constant filler is equal everywhere
        foreign = [
            own.different_ids > thresholds.SOME or own.different_prompts > thresholds.SOME
            for own in (every[a].tokenization, every[b].tokenization)
        ]
        copy, other = (every[a], every[b]) if foreign[0] and not foreign[1] else (every[b], every[a])
        how = (
            f"bit for bit in {two.same_logps:.0%} of the completions"
            if same
            else f"within {two.mean_difference:.1g} nats per token"
        )
        sentence = (
            f"Its log-probs equal those of {other.name}, {how}: a copied cache, or two entries with one model. It only doubles that "
            f"reference's weight. Remove one from the recipe if both name one model."
        )
        yield (a if copy is every[a] else b, copy.finding("copy", sentence, fix=f"Otherwise: {recompute(copy.name)}"))


def _same_ids_as(at: int, every: Sequence[Evidence], similar: Mapping[tuple[int, int], Similarity]) -> str | None:
    """Another reference whose rows have the same ids, if any."""
    for (a, b), two in similar.items():
        if at in (a, b) and two.same_ids > thresholds.NEARLY_ALL:
            return every[b if a == at else a].name
    return None
