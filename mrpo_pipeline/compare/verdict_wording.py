"""Sentences of a verdict: differences in points, and the pairs or seeds needed to show one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mrpo_pipeline.compare.comparisons import Compared
from mrpo_pipeline.evaluation.intervals import Known
from mrpo_pipeline.evaluation.power import POWER, pairs_needed, seeds_needed


def needed(reported: Compared, claimed: Sequence[Compared]) -> str:
    """The pairs or seeds needed to show one point in all the ``claimed`` comparisons at once; ``reported`` is the verdict's."""
    power = 1 - (1 - POWER) / len(claimed)
    known = reported.known

    def most(count: Callable[..., int | None], **given: int) -> int | None:
        """The largest number that any of them needs; None if one needs an unbounded number."""
        counts = [count(x.known, alpha=x.alpha, power=power, **given) for x in claimed]
        return None if None in counts else max(found for found in counts if found is not None)

    every = " against every single reference" if len(claimed) > 1 else ""
    count = most(pairs_needed)
    if count is not None:
        if count == 0:
            most_likely = max(abs(known.low), abs(known.high))
            return f"These pairs and seeds are enough to see one point: more than {in_points(most_likely)} points is unlikely."
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
    """Round to two significant digits."""
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}"


def points(known: Known, *, turned: bool = False) -> str:
    """``2.1 points (0.4 to 3.9)``; ``turned``: with the opposite sign."""
    sign = -1 if turned else 1
    low, high = sorted((sign * known.low, sign * known.high))
    return f"{in_points(sign * known.mean)} points ({in_points(low)} to {in_points(high)})"


def signed(known: Known) -> str:
    return f"{in_points(known.mean, plus=True)} points ({span(known)})"


def unclear(compared: Compared) -> str:
    """A difference that is not significant; if its own interval excludes 0, with the reason."""
    known = compared.known
    alone = known.low > 0 or known.high < 0
    return signed(known) + (f", which may be chance where {compared.family} comparisons are made" if alone else "")


def span(known: Known) -> str:
    return f"{in_points(known.low)} to {in_points(known.high)}"


def in_points(share: float, *, plus: bool = False) -> str:
    text = f"{100 * share:{'+' if plus else ''}.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text in ("+0.0", "\N{MINUS SIGN}0.0") else text
