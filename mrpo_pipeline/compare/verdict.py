"""What a comparison shows and what it does not, in sentences for people who do not know statistics.

"Better" is said of a method with several references where it is better than DPO against *every* single reference, each with
a p-value corrected for all such comparisons of the metric: which single reference is best was read from the same pairs, so
to be better than that one alone would not do. The figure that is told is the difference to the single reference that did best, which
a lucky best makes too small, if anything. "Worse" is said where one single reference is better than every method with several.

What more it would take is told for that same claim: one point over every single reference at once, after the correction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mrpo_pipeline.compare.comparisons import LEFT_OUT, ONE, SEVERAL, TRAINING, Compared
from mrpo_pipeline.compare.methods import START, Contender
from mrpo_pipeline.evaluation.intervals import Known
from mrpo_pipeline.evaluation.pair_outcomes import COMPARABLE
from mrpo_pipeline.evaluation.power import POWER, pairs_needed, seeds_needed

# Means over the same pairs and seeds that differ by less are equal: sums in another order.
LEVEL_WITHIN = 1e-9

BETTER, NONE, WORSE, ONE_SEED = "better", "none", "worse", "one seed"


@dataclass
class Verdict:
    """``kind``: better, none, worse, or one seed. ``drop``: references that the method does better without."""

    sentence: str
    kind: str
    method: str | None = None
    against: str | None = None
    drop: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        return "\n".join([self.sentence, *self.sentences])


def verdict_of(
    contenders: Sequence[Contender],
    compared: Sequence[Compared],
    shares: Mapping[str, Mapping[str, Known]],
    seeds: int,
    metric: str = "accuracy/policy",
    note: str = "",
) -> Verdict:
    """The verdict on one metric, and what else should be known.

    Args:
        note: why it is this metric, or why it can tell nothing; comes first of what else should be known.
    """
    there = {one.name: one for one in contenders if one.name in shares}
    case = _Case(there, [one for one in compared if one.metric == metric], shares, metric)
    if not there:
        return Verdict("No method was trained to the end with every seed, so nothing can be compared.", NONE)
    if seeds == 1:
        verdict = _of_one_seed(case)
    elif case.several:
        verdict = _of_several(case)
    else:
        verdict = _of_singles(case)
    if seeds > 1:
        _name_references_to_drop(case, verdict)
    verdict.sentences += _on_other_metrics(there, compared, verdict, metric)
    if note:
        verdict.sentences.insert(0, note)
    return verdict


class _Case:
    """The comparisons of one metric, by who is asked about."""

    def __init__(
        self,
        contenders: dict[str, Contender],
        compared: list[Compared],
        shares: Mapping[str, Mapping[str, Known]],
        metric: str,
    ) -> None:
        self.contenders, self.compared, self.metric = contenders, compared, metric
        self.mean = {name: shares[name][metric].mean for name in contenders}
        self.several = [x.name for x in contenders.values() if not x.baseline and x.without is None]
        self.singles = [x.name for x in contenders.values() if x.baseline]

    def best(self, names: Sequence[str]) -> str:
        return max(names, key=lambda name: self.mean[name])

    def of(self, method: str, question: str) -> dict[str, Compared]:
        return {x.against: x for x in self.compared if x.method == method and x.question == question}

    def level(self, name: str) -> list[str]:
        """The single references whose mean is this one's, itself among them."""
        return [other for other in self.singles if abs(self.mean[other] - self.mean[name]) < LEVEL_WITHIN]

    def is_level(self, name: str) -> bool:
        return len(self.level(name)) > 1

    def best_single(self, name: str) -> str:
        """How the single reference that did best is called: with those that are level with it, of which none is the best."""
        if not self.is_level(name):
            return f"the best single reference ({self.single(name)})"
        names = [self.single(other) for other in self.level(name)]
        return f"the single references {', '.join(names[:-1])} and {names[-1]}, which are level"

    def single(self, name: str) -> str:
        """How the DPO against one reference is called in a sentence."""
        return str(self.contenders[name].single)


def _of_several(case: _Case) -> Verdict:
    if not case.singles:
        return Verdict(
            "DPO against no single reference was trained to the end, so there is nothing to compare with.", NONE
        )
    winners = [name for name in case.several if all(x.better for x in case.of(name, SEVERAL).values())]
    best = case.best(case.singles)
    if winners:
        method = case.best(winners)
        there = case.of(method, SEVERAL)[best].known
        return Verdict(
            f"{method} is better than {case.best_single(best)}, by {_points(there)}."
            if case.is_level(best)
            else f"{method} is better than {case.best_single(best)} by {_points(there)}.",
            BETTER,
            method,
            best,
        )
    method = case.best(case.several)
    losing = [k for k in case.singles if all(case.of(name, SEVERAL)[k].worse for name in case.several)]
    if losing:
        best = case.best(losing)
        there = case.of(method, SEVERAL)[best].known
        return Verdict(
            f"Several references are worse than one here: DPO against {case.single(best)} alone is better than {method}, "
            f"{'the best of the methods with several, ' if len(case.several) > 1 else ''}by {_points(there, turned=True)}.",
            WORSE,
            method,
            best,
        )
    told, sentence = _not_shown(case, method, best)
    return Verdict(f"{sentence} {_needed(told, list(case.of(method, SEVERAL).values()))}", NONE, method, best)


def _not_shown(case: _Case, method: str, best: str) -> tuple[Compared, str]:
    """Where several references are shown neither better than every single one nor worse than one: what stands against that."""
    asked = case.of(method, SEVERAL)
    there, single = asked[best], case.best_single(best)
    if there.better:
        # The single reference that did best is beaten, and one whose difference is less well known is not.
        left = max((x for x in asked.values() if not x.better), key=lambda x: x.p_corrected)
        return left, (
            f"No clear answer: {method} is better than {single} by {_points(there.known)}, but is not shown to be better than "
            f"{case.single(left.against)}: {_unclear(left)}."
        )
    if there.worse:
        others = [name for name in case.several if not case.of(name, SEVERAL)[best].worse]
        return there, (
            f"No clear answer: {method} is worse than {single} by {_points(there.known, turned=True)}, but of "
            f"{' and '.join(others)} that is not shown."
        )
    return there, f"No difference shown between {method} and {single}: {_unclear(there)}."


def _of_singles(case: _Case) -> Verdict:
    """No method with several references: the best single one against the start."""
    best = case.best(case.singles)
    there = case.of(best, TRAINING)[START]
    name = f"DPO against {case.single(best)}"
    if there.better:
        return Verdict(f"{name} is better than the start by {_points(there.known)}.", BETTER, best, START)
    if there.worse:
        return Verdict(f"{name} is worse than the start by {_points(there.known, turned=True)}.", WORSE, best, START)
    return Verdict(
        f"No difference shown between {name} and the start: {_unclear(there)}. {_needed(there, [there])}",
        NONE,
        best,
        START,
    )


def _of_one_seed(case: _Case) -> Verdict:
    if case.several and case.singles:
        method, against = case.best(case.several), case.best(case.singles)
        there, other = (
            case.of(method, SEVERAL)[against].known,
            f"DPO against {case.best_single(against)}"
            if case.is_level(against)
            else f"DPO against {case.single(against)}, the best single reference",
        )
    else:
        method, against = case.best(case.singles or case.several), START
        there, other = case.of(method, TRAINING)[START].known, "the start"
    apart = _number(abs(there.mean))
    stands = f"{apart} points {'above' if there.mean > 0 else 'below'}" if apart != "0.0" else "level with"
    return Verdict(
        f"One seed shows no more than itself: as trained here, {method} is {stands} {other} "
        f"({_range(there)} points on other pairs like these). How far another seed would move that cannot be known: "
        "train with three seeds at least (--seeds 0,1,2).",
        ONE_SEED,
        method,
        against,
    )


def _name_references_to_drop(case: _Case, verdict: Verdict) -> None:
    harmful = {}
    for x in case.compared:
        if x.question == LEFT_OUT and x.better:
            harmful[str(case.contenders[x.method].without)] = x
    for name, x in harmful.items():
        verdict.drop.append(name)
        verdict.sentences.append(f"Drop {name}: {x.against} does better without it, by {_points(x.known)}.")
    if not case.several or harmful or verdict.against is None or verdict.kind == BETTER:
        return
    kept = case.single(verdict.against)
    if verdict.against in case.singles and case.is_level(verdict.against):
        return  # of references that are level none is to be kept rather than another
    everyone = case.contenders[case.several[0]].references
    if verdict.kind == NONE:
        # Of two references, a single one is the method without the other.
        harmed = [name for name in case.several if case.of(name, SEVERAL)[verdict.against].worse]
        if len(everyone) == 2 and harmed:
            verdict.drop = [name for name in everyone if name != kept]
            there = case.of(harmed[0], SEVERAL)[verdict.against].known
            verdict.sentences.append(
                f"Drop {verdict.drop[0]}: {harmed[0]} is worse than DPO against {kept} alone by {_points(there, turned=True)}, and "
                "no method with both is shown to be better than it."
            )
        return
    verdict.drop = [name for name in everyone if name != kept]
    if len(verdict.drop) == 1:
        verdict.sentences.append(f"Drop {verdict.drop[0]}: DPO against {kept} alone does better than with both.")
    else:
        verdict.sentences.append(
            f"Drop {', '.join(verdict.drop)}: DPO against {kept} alone does better than with all of them. Which of them does the "
            "harm, compare.leave_one_out: true would tell."
        )


def _on_other_metrics(
    there: Mapping[str, Contender], compared: Sequence[Compared], verdict: Verdict, metric: str
) -> list[str]:
    """The same two, in the other ways of counting; and which single references differ."""
    found = []
    if verdict.method and verdict.against:
        parts = []
        measured = {x.metric for x in compared} - {metric}
        for other, label in ((key, text) for key, text in COMPARABLE.items() if key in measured):
            known = next(
                x for x in compared if (x.metric, x.method, x.against) == (other, verdict.method, verdict.against)
            ).known
            parts.append(f"{label}: {_signed(known)}")
        if parts:
            found.append(f"{verdict.method} against {verdict.against}, counted otherwise: {'; '.join(parts)}.")
    clear = [
        x for x in compared if x.metric == metric and x.question == ONE and x.known.seeds > 1 and (x.better or x.worse)
    ]
    for x in clear:
        above, below = (x.method, x.against) if x.better else (x.against, x.method)
        told = _points(x.known, turned=x.worse)
        found.append(f"Of the single references, {there[above].single} is better than {there[below].single} by {told}.")
    return found


def _needed(told: Compared, asked: Sequence[Compared]) -> str:
    """What it would take to show one point in all these comparisons at once; ``told`` is the one whose figures are told."""
    power = 1 - (1 - POWER) / len(asked)
    known = told.known

    def most(count: Callable[..., int | None], **given: int) -> int | None:
        """The largest of what each needs; None where one of them would not do."""
        counts = [count(x.known, alpha=x.alpha, power=power, **given) for x in asked]
        return None if None in counts else max(found for found in counts if found is not None)

    every = " against every single reference" if len(asked) > 1 else ""
    count = most(pairs_needed)
    if count is not None:
        if count == 0:
            most_likely = max(abs(known.low), abs(known.high))
            return f"These pairs and seeds are enough to see one point: more than {_number(most_likely)} points is unlikely."
        seeds = most(seeds_needed, pairs=known.pairs)
        instead = f", or {seeds} seeds in place of {known.seeds}," if seeds and seeds <= 20 else ""
        return f"About {_round(count)} more held-out pairs{instead} would be needed to see one point{every}."
    seeds = most(seeds_needed)
    if seeds is None:
        return f"Seeds differ so much that no number of held-out pairs would show one point{every}."
    with_those = most(pairs_needed, seeds=seeds) or 0
    pairs = f" and about {_round(with_those)} more held-out pairs" if with_those else ""
    return f"Seeds differ too much for more held-out pairs alone: about {seeds} seeds{pairs} would be needed to see one point{every}."


def _round(count: int) -> str:
    """Two digits: more would feign knowledge."""
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}"


def _points(known: Known, *, turned: bool = False) -> str:
    """``2.1 points (0.4 to 3.9)``; ``turned``: as seen from the other side."""
    sign = -1 if turned else 1
    low, high = sorted((sign * known.low, sign * known.high))
    return f"{_number(sign * known.mean)} points ({_number(low)} to {_number(high)})"


def _signed(known: Known) -> str:
    return f"{_number(known.mean, plus=True)} points ({_range(known)})"


def _unclear(compared: Compared) -> str:
    """A difference that is not claimed; where its own interval leaves out 0, why not."""
    known = compared.known
    alone = known.low > 0 or known.high < 0
    return _signed(known) + (f", which may be chance where {compared.family} comparisons are made" if alone else "")


def _range(known: Known) -> str:
    return f"{_number(known.low)} to {_number(known.high)}"


def _number(share: float, *, plus: bool = False) -> str:
    text = f"{100 * share:{'+' if plus else ''}.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text in ("+0.0", "\N{MINUS SIGN}0.0") else text
