"""Further sentences of a verdict: the benefit of references and of a selection, references to drop, and other metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrpo_pipeline.compare.comparisons import FREE, LEFT_OUT, ONE, SELECTED, SEVERAL, Compared
from mrpo_pipeline.compare.methods import Contender
from mrpo_pipeline.compare.verdict_case import NONE, ONE_SEED, Case, Verdict
from mrpo_pipeline.compare.verdict_wording import points, signed, unclear
from mrpo_pipeline.evaluation.pair_outcomes import COMPARABLE


def on_references(case: Case, verdict: Verdict) -> list[str]:
    """Whether references paid: the verdict's method and the best single reference against training without references."""
    names = [verdict.method or case.subject()] if case.several else []
    names += [case.best(case.singles)] if case.singles else []
    found = []
    for free in case.free:
        clauses = "; ".join(_differs(case, name, case.of(name, FREE)[free]) for name in names)
        against = f"gainst training without any ({free})"
        start = f"As trained here with one seed, a{against}" if verdict.kind == ONE_SEED else f"A{against}"
        found.append(f"Did references pay? {start}: {clauses}.")
    return found


def _differs(case: Case, name: str, there: Compared) -> str:
    called = case.called(name)
    if there.known.seeds == 1:
        return f"{called} {signed(there.known)}"
    if there.better:
        return f"{called} is better by {points(there.known)}"
    if there.worse:
        return f"{called} is worse by {points(there.known, turned=True)}"
    return f"{called} is not shown to differ, {unclear(there)}"


def on_selection(case: Case) -> list[str]:
    """Whether a selection of the training pairs does as well as all, with both numbers of pairs."""
    found = []
    for there in (x for x in case.compared if x.question == SELECTED):
        part, whole = case.contenders[there.method], case.contenders[there.against]
        clause = _differs(case, there.against, there)
        found.append(
            f"Do the selected pairs do? On {part.pairs:,} of {whole.pairs:,} training pairs, against all of them: {clause}."
        )
    return found


def name_references_to_drop(case: Case, verdict: Verdict) -> None:
    harmful = {}
    for x in case.compared:
        if x.question == LEFT_OUT and x.better:
            harmful[str(case.contenders[x.method].without)] = x
    for name, x in harmful.items():
        verdict.drop.append(name)
        verdict.sentences.append(f"Drop {name}: {x.against} does better without it, by {points(x.known)}.")
    if not case.several or harmful or verdict.against is None or case.winners():
        return
    kept = case.single(verdict.against)
    if verdict.against in case.singles and case.is_level(verdict.against):
        return  # none of several level references is to be preferred
    everyone = case.contenders[case.several[0]].references
    if verdict.kind == NONE:
        # Of two references, a single one equals the method without the other.
        harmed = [name for name in case.several if case.of(name, SEVERAL)[verdict.against].worse]
        if len(everyone) == 2 and harmed:
            verdict.drop = [name for name in everyone if name != kept]
            there = case.of(harmed[0], SEVERAL)[verdict.against].known
            verdict.sentences.append(
                f"Drop {verdict.drop[0]}: {harmed[0]} is worse than DPO against {kept} alone by {points(there, turned=True)}, and "
                "no method with both is shown to be better than it."
            )
        return
    verdict.drop = [name for name in everyone if name != kept]
    if len(verdict.drop) == 1:
        verdict.sentences.append(f"Drop {verdict.drop[0]}: DPO against {kept} alone does better than with both.")
    else:
        verdict.sentences.append(
            f"Drop {', '.join(verdict.drop)}: DPO against {kept} alone does better than with all of them. compare.leave_one_out: true "
            "would show which of them does the harm."
        )


def on_other_metrics(
    there: Mapping[str, Contender], compared: Sequence[Compared], verdict: Verdict, metric: str
) -> list[str]:
    """The same comparison in the other metrics; and single references that differ."""
    found = []
    if verdict.method and verdict.against:
        parts = []
        measured = {x.metric for x in compared} - {metric}
        for other, label in ((key, text) for key, text in COMPARABLE.items() if key in measured):
            known = next(
                x for x in compared if (x.metric, x.method, x.against) == (other, verdict.method, verdict.against)
            ).known
            parts.append(f"{label}: {signed(known)}")
        if parts:
            found.append(f"{verdict.method} against {verdict.against}, counted otherwise: {'; '.join(parts)}.")
    clear = [
        x for x in compared if x.metric == metric and x.question == ONE and x.known.seeds > 1 and (x.better or x.worse)
    ]
    for x in clear:
        above, below = (x.method, x.against) if x.better else (x.against, x.method)
        by = points(x.known, turned=x.worse)
        found.append(f"Of the single references, {there[above].single} is better than {there[below].single} by {by}.")
    return found
