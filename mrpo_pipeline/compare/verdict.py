"""The verdict of a comparison, in sentences for readers without statistics.

A method with several references is "better" if it is better than DPO against *every* single reference, with p-values
corrected for all these comparisons of the metric: the best single reference is selected on the same pairs, so beating that one
alone is not enough. The reported difference is to the best single reference; by its selection this is too small rather than too
large. "Worse" means that one single reference is better than every method with several. The verdict is about MRPO if it is among
the methods; another method that is better gets its own sentence, and so does the benefit of references: the same method, and the
best single reference, against training without references.

The numbers of pairs and seeds needed are for the same claim: one point over every single reference at once, after correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrpo_pipeline.compare.comparisons import SEVERAL, TRAINING, Compared
from mrpo_pipeline.compare.further_findings import (
    name_references_to_drop,
    on_other_metrics,
    on_references,
    on_selection,
)
from mrpo_pipeline.compare.methods import START, Contender
from mrpo_pipeline.compare.verdict_case import BETTER, NONE, ONE_SEED, WORSE, Case, Verdict
from mrpo_pipeline.compare.verdict_wording import in_points, needed, points, span, unclear
from mrpo_pipeline.evaluation.intervals import Known


def verdict_of(
    contenders: Sequence[Contender],
    compared: Sequence[Compared],
    shares: Mapping[str, Mapping[str, Known]],
    seeds: int,
    metric: str = "accuracy/policy",
    note: str = "",
) -> Verdict:
    """The verdict on one metric, with further notes.

    Args:
        note: why this metric was taken, or why it is not informative; the first of the further notes.
    """
    trained = {one.name: one for one in contenders if one.name in shares}
    case = Case(trained, [one for one in compared if one.metric == metric], shares, metric)
    if not (case.several or case.singles):
        return Verdict(
            "No method with a reference was trained to the end with every seed, so nothing can be compared.", NONE
        )
    if seeds == 1:
        verdict = _of_one_seed(case)
    elif case.several:
        verdict = _of_several(case)
    else:
        verdict = _of_singles(case)
    verdict.sentences += on_references(case, verdict) + on_selection(case)
    if seeds > 1:
        name_references_to_drop(case, verdict)
    verdict.sentences += on_other_metrics(trained, compared, verdict, metric)
    if note:
        verdict.sentences.insert(0, note)
    return verdict


def _of_several(case: Case) -> Verdict:
    if not case.singles:
        return Verdict(
            "DPO against no single reference was trained to the end, so there is nothing to compare with.", NONE
        )
    method, best = case.subject(), case.best(case.singles)
    others = [_is_better(case, name, best) for name in case.winners() if name != method]
    if method in case.winners():
        return Verdict(_is_better(case, method, best), BETTER, method, best, sentences=others)
    losing = [k for k in case.singles if all(case.of(name, SEVERAL)[k].worse for name in case.several)]
    if losing:
        best = case.best(losing)
        there = case.of(method, SEVERAL)[best].known
        every = " and than every other method with several" if len(case.several) > 1 else ""
        return Verdict(
            f"Several references are worse than one here: DPO against {case.single(best)} alone is better than {method} by "
            f"{points(there, turned=True)}{every}.",
            WORSE,
            method,
            best,
        )
    reported, sentence = _not_shown(case, method, best)
    more = needed(reported, list(case.of(method, SEVERAL).values()))
    return Verdict(sentence, NONE, method, best, sentences=[*others, more])


def _is_better(case: Case, method: str, best: str) -> str:
    difference = points(case.of(method, SEVERAL)[best].known)
    return f"{method} is better than {case.best_single(best)}{',' if case.is_level(best) else ''} by {difference}."


def _not_shown(case: Case, method: str, best: str) -> tuple[Compared, str]:
    """The comparison to report, and its sentence, if several references are shown neither better than every single one nor worse than
    one."""
    by_single = case.of(method, SEVERAL)
    there, single = by_single[best], case.best_single(best)
    if there.better:
        # The best single reference is beaten, but not one with a wider interval.
        left = max((x for x in by_single.values() if not x.better), key=lambda x: x.p_corrected)
        return left, (
            f"No clear answer: {method} is better than {single} by {points(there.known)}, but is not shown to be better than "
            f"{case.single(left.against)}: {unclear(left)}."
        )
    if there.worse:
        others = [name for name in case.several if not case.of(name, SEVERAL)[best].worse]
        return there, (
            f"No clear answer: {method} is worse than {single} by {points(there.known, turned=True)}, but of "
            f"{' and '.join(others)} that is not shown."
        )
    return there, f"No difference shown between {method} and {single}: {unclear(there)}."


def _of_singles(case: Case) -> Verdict:
    """The verdict without methods with several references: the best single one against the start."""
    best = case.best(case.singles)
    there = case.of(best, TRAINING)[START]
    name = f"DPO against {case.single(best)}"
    if there.better:
        return Verdict(f"{name} is better than the start by {points(there.known)}.", BETTER, best, START)
    if there.worse:
        return Verdict(f"{name} is worse than the start by {points(there.known, turned=True)}.", WORSE, best, START)
    sentence = f"No difference shown between {name} and the start: {unclear(there)}."
    return Verdict(sentence, NONE, best, START, sentences=[needed(there, [there])])


def _of_one_seed(case: Case) -> Verdict:
    if case.several and case.singles:
        method, against = case.subject(), case.best(case.singles)
        there, other = (
            case.of(method, SEVERAL)[against].known,
            f"DPO against {case.best_single(against)}"
            if case.is_level(against)
            else f"DPO against {case.single(against)}, the best single reference",
        )
    else:
        method, against = case.best(case.singles or case.several), START
        there, other = case.of(method, TRAINING)[START].known, "the start"
    apart = in_points(abs(there.mean))
    position = f"{apart} points {'above' if there.mean > 0 else 'below'}" if apart != "0.0" else "level with"
    return Verdict(
        f"One seed shows no more than itself: as trained here, {method} is {position} {other} "
        f"({span(there)} points on other pairs like these).",
        ONE_SEED,
        method,
        against,
        sentences=[
            "How far another seed would move that cannot be known: train with three seeds at least (--seeds 0,1,2)."
        ],
    )
