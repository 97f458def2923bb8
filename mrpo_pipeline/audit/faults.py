"""From figures to findings: which references look broken, and by which fault.

What the rows record settles it where it can (``origin``): ids, text and prompt are right or they are not. Where the rows are
in order, the numbers themselves are looked at (``patterns``). Every rule is about one reference alone, so that it holds for one
reference as for ten, and a majority that is broken the same way outvotes nobody; copies alone take two.

What cannot be told: a reference that knows little of this text, or was trained on other text, spends as many nats as a broken
one. It is remarked on, not found. A doubled BOS that the rows' counts do not show, and padding that is read but hardly heeded,
move the numbers less than models differ; ``mrpo cache verify``, which computes some again, sees both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.findings import Evidence, Finding, again
from mrpo_pipeline.audit.logprob_checks import fault_by_numbers, rounding
from mrpo_pipeline.audit.pairwise import Likeness
from mrpo_pipeline.audit.row_checks import fault_by_rows


def find_faults(every: Sequence[Evidence], likeness: Mapping[tuple[int, int], Likeness]) -> list[Finding]:
    """The findings, in the references' order."""
    copies = dict(_copies(every, likeness))
    found = []
    for at, one in enumerate(every):
        if at in copies:
            found.append(copies[at])
            continue
        found += list(_findings(one, _same_ids_as(at, every, likeness)))
    return found


def _findings(one: Evidence, alike: str | None) -> Iterator[Finding]:
    patterns = one.patterns
    if one.enough and (
        patterns.spread < thresholds.CONSTANT_SPREAD or patterns.by_place > thresholds.CONSTANT_BY_PLACE
    ):
        yield Finding(
            one.name,
            "constant",
            "Its log-probs do not vary with the text: "
            + (
                f"their standard deviation is {patterns.spread:.2%} of their mean. "
                if patterns.spread < thresholds.CONSTANT_SPREAD
                else f"the token's place alone explains {patterns.by_place:.1%} of their variance. "
            )
            + "The weights were not loaded, or the numbers are filler. "
            + again(one.name),
        )
        return
    told = fault_by_rows(one, alike) or (fault_by_numbers(one) if one.enough else None)
    steps = rounding(one) if one.enough else None
    # Log-probs dealt out to texts of other lengths stand there more than once.
    if steps and not (told and told.fault == "shuffled" and patterns.bits > thresholds.COARSE_BITS):
        yield steps
    elif (
        one.enough
        and patterns.zeros > thresholds.ZEROS
        and patterns.near_zeros < thresholds.NEAR_ZEROS * patterns.zeros
    ):
        yield Finding(
            one.name,
            "zeros",
            f"{patterns.zeros:.1%} of its log-probs are exactly 0, and only {patterns.near_zeros:.1%} lie near it, as sure "
            f"tokens of a model do: they were never written, or were masked. {again(one.name)}",
        )
    if told:
        yield told


def _copies(every: Sequence[Evidence], likeness: Mapping[tuple[int, int], Likeness]) -> Iterator[tuple[int, Finding]]:
    """By the position of the copy. Of the two, the one whose ids are not its own tokenizer's; else the later one."""
    for (a, b), alike in likeness.items():
        same = alike.same_numbers > thresholds.NEARLY_ALL
        if not same and not (alike.same_ids > thresholds.NEARLY_ALL and alike.apart <= thresholds.COPY_APART):
            continue
        if every[a].patterns.spread < thresholds.CONSTANT_SPREAD:
            continue  # filler is alike everywhere
        foreign = [
            every[at].origin.other_ids > thresholds.SOME or every[at].origin.other_prompts > thresholds.SOME
            for at in (a, b)
        ]
        copy, other = (a, b) if foreign[0] and not foreign[1] else (b, a)
        how = (
            f"in {alike.same_numbers:.0%} of the completions, to the last bit"
            if same
            else f"within {alike.apart:.1g} nats a token"
        )
        yield (
            copy,
            Finding(
                every[copy].name,
                "copy",
                f"Its log-probs are those of {every[other].name}, {how}: one is a copy of the other (the cache was copied, or both "
                "entries name the same model), so it adds nothing but the double weight. Take one of them out of the recipe, or "
                + again(every[copy].name, capital=False),
            ),
        )


def _same_ids_as(at: int, every: Sequence[Evidence], likeness: Mapping[tuple[int, int], Likeness]) -> str | None:
    """Another reference whose rows hold the same ids, if there is one."""
    for (a, b), alike in likeness.items():
        if at in (a, b) and alike.same_ids > thresholds.NEARLY_ALL:
            return every[b if a == at else a].name
    return None
