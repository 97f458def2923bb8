"""K-wise preferences: all pairs of K completions with different ranks."""

import math
from decimal import Decimal
from itertools import combinations
from typing import Any

from mrpo_pipeline.files.bounds import MAX_ROW_COMPLETIONS
from mrpo_pipeline.pairs.row_errors import BadRowError, describe


def strict_pairs(count: int, ranks: Any, scores: Any) -> list[tuple[int, int]]:
    """(better, worse) indices of every two completions of different rank, ordered (0, 1), (0, 2) … (1, 2) …; ties make no pair.

    `ranks`: `count` numbers, lower is better; `scores`: `count` numbers, higher is better. With both, `ranks` decide
    and no score may contradict them.
    Raises BadRowError: neither is given, lengths differ, a number is not finite, or there are fewer than two completions.
    """
    if count < 2:
        raise BadRowError("too few completions", f"`completions` holds {count}; expected two or more")
    if count > MAX_ROW_COMPLETIONS:
        raise BadRowError(
            "too many completions", f"`completions` holds {count}; expected {MAX_ROW_COMPLETIONS} at most"
        )
    if ranks is None and scores is None:
        raise BadRowError("no ranks or scores", "`completions` without `ranks` or `scores` express no preference")
    costs = None if ranks is None else _numbers(ranks, "ranks", count)
    values = None if scores is None else _numbers(scores, "scores", count)
    pairs = []
    for one, other in combinations(range(count), 2):
        by_score = 0 if values is None else _sign(values[one], values[other])
        by_rank = by_score if costs is None else _sign(costs[other], costs[one])
        if by_rank * by_score < 0:
            raise BadRowError("ranks and scores disagree", f"about completions {one} and {other}")
        if by_rank:
            pairs.append((one, other) if by_rank > 0 else (other, one))
    return pairs


def _sign(one: Any, other: Any) -> int:
    return int(one > other) - int(one < other)


def _numbers(value: Any, name: str, count: int) -> list[Any]:
    if not isinstance(value, list):
        raise BadRowError("wrong type", f"`{name}` is {describe(value)}; expected a list of numbers")
    if len(value) != count:
        raise BadRowError("lengths differ", f"`{name}` holds {len(value)} numbers for {count} completions")
    for index, number in enumerate(value):
        if isinstance(number, bool) or not isinstance(number, int | float | Decimal):
            raise BadRowError("wrong type", f"`{name}[{index}]` is {describe(number)}; expected a number")
        if not isinstance(number, int) and not math.isfinite(number):
            raise BadRowError("not a finite number", f"`{name}[{index}]` is {number}")
    return value
